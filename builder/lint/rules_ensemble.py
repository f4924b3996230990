"""Rules about the wiring of ensembles."""

from __future__ import annotations

from builder.lint.rule import Rule

TABLE = (
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
)
