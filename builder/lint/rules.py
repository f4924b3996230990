"""The rules: stable ids, what each means and what to do. docs/lint/ is generated from this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
DOCS = "docs/lint"


@dataclass(frozen=True)
class Rule:
    """`title` is one line; `why` says what happens otherwise, `cure` what to do."""

    id: str
    severity: Severity
    title: str
    why: str
    cure: str
    fixable: bool = False

    @property
    def page(self) -> str:
        return f"{DOCS}/{self.id}.md"


@dataclass(frozen=True)
class Finding:
    """One breach of a rule. `file` is relative to the repository; `line` counts from 1."""

    rule: Rule
    file: str
    line: int
    message: str
    subject: str = ""  # the parameter or tensor that a fix is about


_TABLE = (
    # Files and names
    Rule(
        "EW101",
        "error",
        "A model folder has no config.pbtxt",
        "Triton cannot tell which backend the model needs: 'Could not determine backend for model'.",
        "Write a config.pbtxt, or move the folder out of the repository.",
    ),
    Rule(
        "EW102",
        "error",
        "A configuration is not valid protobuf text",
        "Triton leaves the model out: 'Error parsing text-format inference.ModelConfig'. Other models that "
        "need it fail too.",
        "Correct the line that is named: a misspelt field, a wrong type, a missing quote or bracket.",
    ),
    Rule(
        "EW103",
        "error",
        "A placeholder was left in a place that must be filled",
        "The model does not load: 'Expected integer, got: $', or a backend or path named '${...}'.",
        "Fill it: with ew, run ./ew render; with upstream's templates, give fill_template.py every key.",
    ),
    Rule(
        "EW104",
        "error",
        "The name in the configuration differs from the folder",
        "Triton refuses it: 'directory name must equal model name'.",
        "Write the folder's name, or leave the name out.",
        fixable=True,
    ),
    Rule(
        "EW105",
        "error",
        "A model has no version folder",
        "Triton needs at least one numbered folder, also for ensembles, where it may be empty: 'at least one "
        "version must be available under the version policy'.",
        "Make the folder 1/. Object stores and git drop empty folders: put a file into it.",
        fixable=True,
    ),
    Rule(
        "EW106",
        "error",
        "Neither backend nor platform is given",
        "Triton cannot tell what runs the model.",
        'Add backend: "python", backend: "tensorrtllm" or platform: "ensemble".',
    ),
    Rule(
        "EW107",
        "warning",
        "A tensor is declared twice",
        "Triton takes it without a word; which of the two counts is not defined.",
        "Remove one of them.",
    ),
    Rule(
        "EW108",
        "error",
        "Two models have names that differ in case only",
        "They are one folder on file systems without case, and one key in many object-store tools.",
        "Rename one of them.",
    ),
    Rule(
        "EW109",
        "warning",
        "A placeholder was left in a parameter that has a default",
        "The backend cannot convert it, logs a line and uses its default; a path is taken as it stands.",
        "Fill it, or leave the value empty.",
        fixable=True,
    ),
    # Batching and instances
    Rule(
        "EW201",
        "error",
        "A preferred batch size is over max_batch_size",
        "Triton refuses it: 'dynamic batching preferred size must be <= max batch size'.",
        "Use values up to max_batch_size.",
    ),
    Rule(
        "EW202",
        "error",
        "Batching is configured on a model without batches",
        "With max_batch_size 0 there is nothing to batch, and scalar tensors (an empty reshape) are refused.",
        "Set max_batch_size to 1 or more, or remove dynamic_batching and the reshapes.",
    ),
    Rule(
        "EW203",
        "error",
        "A number is out of range",
        "Triton or the backend refuses it, or takes it for something else.",
        "Use a value in the range that the message names.",
    ),
    Rule(
        "EW204",
        "error",
        "A dimension is neither positive nor -1",
        "Triton refuses it: 'dimension must be integer >= 1, or -1'.",
        "Use -1 for a length that varies.",
    ),
    # The engine model
    Rule(
        "EW301",
        "error",
        "A parameter is missing that the backend reads without asking",
        "The model does not load: 'Cannot find parameter with name'.",
        "Add it; an empty value is enough where the message says so.",
        fixable=True,
    ),
    Rule(
        "EW302",
        "error",
        "A parameter has a value of the wrong type or outside its range",
        "The backend throws while it loads, or logs a line and uses its default.",
        "Use a value of the kind that the message names; leave it empty for the default.",
    ),
    Rule(
        "EW303",
        "warning",
        "A boolean will silently become the default",
        "The C++ backend knows True, true, TRUE, 1, False, false, FALSE and 0. Anything else, such as yes or "
        "on, is the default, with one line in the log.",
        "Write true or false.",
        fixable=True,
    ),
    Rule(
        "EW304",
        "warning",
        "The backend does not know a parameter",
        "It is ignored; mostly a spelling mistake, so the setting has no effect.",
        "Use the name that the message suggests, or remove it.",
    ),
    Rule(
        "EW305",
        "error",
        "Static batching (V1) is asked for",
        "It parses, and then the executor refuses it: 'Static batching type is deprecated'.",
        "Set gpt_model_type to inflight_fused_batching.",
    ),
    Rule(
        "EW306",
        "error",
        "The engine folder is missing or holds no engine",
        "The backend reports a path that is not there as 'gpt_model_path is not specified'.",
        "Build the engine, or correct gpt_model_path. Paths are those of the serving machine: lint there, "
        "or with --no-paths.",
    ),
    Rule(
        "EW307",
        "error",
        "The GPUs do not fit the engine's world size",
        "The engine was built for tp x pp ranks; TensorRT-LLM asserts that each has a GPU.",
        "Name tp x pp GPUs for each instance in gpu_device_ids, or build the engine for another size.",
    ),
    Rule(
        "EW308",
        "error",
        "The engine was built by another TensorRT-LLM version",
        "Engines load only in the version that built them.",
        "Serve it in the container of that version, or build it again.",
    ),
    Rule(
        "EW309",
        "error",
        "Lookahead decoding without its three sizes",
        "The model does not load unless window, n-gram and verification set sizes are all given.",
        "Set lookahead_window_size, lookahead_ngram_size and lookahead_verification_set_size.",
    ),
    Rule(
        "EW310",
        "warning",
        "The engine model is not decoupled",
        "Requests with streaming fail, because such a model may send one response only.",
        "Add model_transaction_policy { decoupled: true }.",
    ),
    Rule(
        "EW311",
        "error",
        "A tensor of the engine differs from the backend's contract",
        "The backend looks tensors up by name and reads them by type; another type or rank is refused or "
        "misread.",
        "Use the name, type and dimensions that the message names.",
    ),
    Rule(
        "EW312",
        "error",
        "The engine model lacks a tensor that every request needs",
        "Requests cannot be served without it.",
        "Add the tensor.",
    ),
    Rule(
        "EW313",
        "warning",
        "Several instances share the same GPUs",
        "Each takes its share of the free GPU memory for the KV cache, the first one nearly all of it.",
        "Name GPUs for each instance in gpu_device_ids (0,1;2,3), or use one instance.",
    ),
    Rule(
        "EW314",
        "error",
        "Guided decoding without its tokenizer file",
        "The backend needs xgrammar_tokenizer_info_path as soon as guided_decoding_backend is set, and knows "
        "no other backend than xgrammar.",
        "Set both or neither.",
    ),
    # Python models
    Rule(
        "EW401",
        "error",
        "A Python model has no model.py",
        "The Python backend has nothing to run.",
        "Put model.py into the version folder, or name the file in default_model_filename.",
    ),
    Rule(
        "EW402",
        "error",
        "A Python file does not compile",
        "The model does not load.",
        "Correct the line that is named.",
    ),
    Rule(
        "EW403",
        "error",
        "A Python model imports a module that is not there",
        "The model does not load: 'No module named ...'.",
        "Put the file beside model.py, or install the package into the environment that serves.",
    ),
    Rule(
        "EW404",
        "error",
        "model.py has no class TritonPythonModel with execute",
        "The Python backend looks for exactly this.",
        "Define class TritonPythonModel with an execute method.",
    ),
    Rule(
        "EW405",
        "error",
        "A parameter is missing that the Python model reads without asking",
        "Its initialize ends with a KeyError.",
        "Add it.",
    ),
    Rule(
        "EW406",
        "error",
        "The tokenizer folder is missing or holds no tokenizer",
        "The model does not load.",
        "Correct tokenizer_dir. Paths are resolved on the serving machine: lint there, or with --no-paths.",
    ),
    Rule(
        "EW407",
        "error",
        "A text model lacks a tensor that its code looks up",
        "Its initialize or its first request fails.",
        "Add the tensor to the configuration.",
    ),
    Rule(
        "EW408",
        "error",
        "A model named in a parameter is not in the repository",
        "Each request fails: 'Model ... is not ready'.",
        "Correct the name, or add the model.",
    ),
    Rule(
        "EW409",
        "error",
        "The arguments of the vLLM engine are missing or not a JSON object",
        "The vLLM backend reads 1/model.json when it loads.",
        "Write 1/model.json with at least a model.",
    ),
    # Ensembles
    Rule(
        "EW501",
        "error",
        "A step names a model that is not in the repository",
        "The ensemble does not load: 'contains models that are not available'.",
        "Correct model_name, or add the model.",
    ),
    Rule(
        "EW502",
        "error",
        "A step maps an input that its model does not have",
        "The ensemble does not load: 'is mapping to non-existing input'.",
        "Correct the key of input_map, or declare the input.",
    ),
    Rule(
        "EW503",
        "error",
        "A step maps an output that its model does not have",
        "The ensemble does not load: 'is mapped from non-existing output'.",
        "Correct the key of output_map, or declare the output.",
    ),
    Rule(
        "EW504",
        "error",
        "A step reads a tensor that nothing produces",
        "The ensemble does not load, or the step never runs.",
        "Map it from an ensemble input or an output of another step.",
    ),
    Rule(
        "EW505",
        "error",
        "A step's required input is not mapped",
        "The ensemble does not load.",
        "Map the input, or declare it optional in the model.",
    ),
    Rule(
        "EW506",
        "error",
        "Types differ along a connection",
        "The ensemble does not load: 'inconsistent data type'.",
        "Give both ends the same data_type.",
    ),
    Rule(
        "EW507",
        "error",
        "Shapes differ along a connection",
        "The ensemble does not load: 'inconsistent shape'.",
        "Give both ends the same number of dimensions, and equal sizes where neither is -1.",
    ),
    Rule(
        "EW508",
        "error",
        "An input or output of the ensemble is not connected",
        "The ensemble does not load: 'is not used'.",
        "Map it in a step, or remove it.",
    ),
    Rule(
        "EW509",
        "error",
        "A tensor is produced twice",
        "The ensemble does not load: 'can appear in an output map only once'.",
        "Give the second one another name.",
    ),
    Rule(
        "EW510",
        "error",
        "A tensor inside the ensemble is not used",
        "The ensemble does not load: 'ensemble tensor ... is unused'.",
        "Remove it from output_map, or use it.",
    ),
    Rule(
        "EW511",
        "error",
        "The ensemble's max_batch_size is over a step's",
        "The ensemble does not load: 'allows maximum batch size ..., but it contains model'.",
        "Use the smallest max_batch_size of the steps everywhere.",
    ),
    Rule(
        "EW512",
        "error",
        "A step mixes tensors from before and behind a decoupled model",
        "The ensemble does not load: 'receives inputs originated from different decoupled models'.",
        "Pass such values by request id or request parameters, or use a BLS model.",
    ),
    Rule(
        "EW513",
        "error",
        "An ensemble has an instance group",
        "The ensemble does not load: 'instance group should not be specified'.",
        "Remove instance_group.",
    ),
    Rule(
        "EW514",
        "error",
        "A step wants a version that is not there",
        "The ensemble does not load: 'required version ... is not loaded'.",
        "Use model_version: -1, or add the version's folder.",
    ),
    Rule(
        "EW515",
        "error",
        "An ensemble has no steps",
        "The ensemble does not load: 'must specify steps'.",
        "Add ensemble_scheduling { step [ ... ] }.",
    ),
    Rule(
        "EW516",
        "warning",
        "An optional input of the ensemble feeds a required one of a step",
        "It loads, but a request without that input never gets through the step.",
        "Make the step's input optional, or the ensemble's required.",
    ),
    # ew's own files
    Rule(
        "EW601",
        "error",
        "worker.json is not usable",
        "The bridge reads it when the model loads, and stops.",
        "Run ./ew render again.",
    ),
    Rule(
        "EW602",
        "error",
        "worker.json names a package or a worker that is not there",
        "The worker cannot start.",
        "Convert the model, or run ./ew render again after a move.",
    ),
)

RULES = {rule.id: rule for rule in _TABLE}
