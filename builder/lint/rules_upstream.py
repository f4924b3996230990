"""Rules about upstream's llmapi model and vLLM's own backend."""

from __future__ import annotations

from builder.lint.rule import Rule

TABLE = (
    # The llmapi model
    Rule(
        "EW701",
        "error",
        "model.yaml is missing or names no model",
        "Upstream's llmapi model reads 1/model.yaml when it loads and passes it to tensorrt_llm.LLM.",
        "Write 1/model.yaml with at least a model; with ew, ./ew render --layout llmapi.",
    ),
    Rule(
        "EW702",
        "error",
        "tensorrt_llm.LLM does not take an argument of model.yaml",
        "The model does not load: unknown names and wrong types are refused.",
        "Use the name and type that the message names, or remove the line.",
    ),
    Rule(
        "EW703",
        "error",
        "triton_config contradicts config.pbtxt",
        "The model does not load: what config.pbtxt says cannot be overridden from model.yaml.",
        "Write the same in both, or leave it out of config.pbtxt.",
    ),
    Rule(
        "EW704",
        "error",
        "Batching is asked of the llmapi model",
        "It takes one prompt a request; a max_batch_size over 0 is not supported.",
        "Set max_batch_size to 0 in model.yaml and remove it from config.pbtxt.",
    ),
    Rule(
        "EW705",
        "warning",
        "The llmapi model is not decoupled",
        "Requests with streaming fail at their second chunk. model.yaml alone is not enough: the stock "
        "launcher starts tritonserver with --disable-auto-complete-config, which leaves it unread.",
        "Add model_transaction_policy { decoupled: true } to config.pbtxt and decoupled: true to model.yaml.",
    ),
    Rule(
        "EW706",
        "error",
        "A tensor of the llmapi model differs from upstream's",
        "Its code and its clients look tensors up by name, type and rank.",
        "Use the name, type and dimensions that the message names.",
    ),
    Rule(
        "EW707",
        "error",
        "The checkpoint folder is missing",
        "The engine does not start.",
        "Correct the path. Paths are those of the serving machine: lint there, or with --no-paths.",
    ),
    # vLLM
    Rule(
        "EW801",
        "error",
        "A vLLM model over several GPUs is bound to one",
        "vLLM's backend refuses tensor or pipeline parallel models unless the instance kind is KIND_MODEL.",
        "Set instance_group [ { count: 1 kind: KIND_MODEL } ].",
    ),
    Rule(
        "EW802",
        "error",
        "Batching is asked of vLLM's backend",
        "It batches by itself and sets max_batch_size to 0; another value is refused.",
        "Remove max_batch_size and dynamic_batching.",
    ),
    Rule(
        "EW803",
        "error",
        "LoRA without a readable multi_lora.json",
        "With enable_lora the backend reads 1/multi_lora.json: names of adapters and their folders.",
        "Write the file, or remove enable_lora from model.json.",
    ),
    Rule(
        "EW804",
        "error",
        "A vLLM argument is out of range",
        "The engine does not start.",
        "Use a value of the kind that the message names.",
    ),
)
