"""Rules about Python models and the text models."""

from __future__ import annotations

from builder.lint.rule import Rule

TABLE = (
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
        "A Python model imports what is not there",
        "The model does not load: 'No module named ...' or 'cannot import name ...'.",
        "Put the file beside model.py, correct the name, or install the package where it is served.",
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
    Rule(
        "EW410",
        "error",
        "A Python model does not import",
        "With --import-check its model.py was imported, and that failed; the model does not load.",
        "Correct the line that is named, or install what is missing into the environment that serves.",
    ),
    Rule(
        "EW411",
        "warning",
        "Code that comes with the weights would be run",
        "trust_remote_code lets whoever wrote the checkpoint run Python in the server.",
        "Remove it, unless the model cannot be loaded otherwise and its code was read.",
    ),
)
