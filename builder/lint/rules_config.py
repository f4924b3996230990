"""Rules about files, names, batching and instances of any model."""

from __future__ import annotations

from builder.lint.rule import Rule

TABLE = (
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
    Rule(
        "EW110",
        "error",
        "The version policy names a version that is not there",
        "Triton logs it and serves the others; a client or step that asks for that version is refused.",
        "Add the version's folder, or take the number out of version_policy.",
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
)
