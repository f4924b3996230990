"""Rules about the TensorRT-LLM backend and ew's own worker."""

from __future__ import annotations

from builder.lint.rule import Rule

TABLE = (
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
    Rule(
        "EW315",
        "error",
        "The container has no such backend",
        "The model does not load: 'unable to find backend library for backend'. Only the "
        "trtllm containers have tensorrtllm, only the vllm containers have vllm.",
        "Serve it in a container of the other kind, or render the model for this one.",
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
