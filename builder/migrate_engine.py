"""Migrate: the inflight_batcher_llm layout, also as triton_cli writes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builder.compat import Era
from builder.lint.parameters import BOOLEANS
from builder.lint.repository import Model, Repository, type_name
from builder.migrate_rows import Reading, Row, is_setting, lengths, with_argument
from common.triton_settings import TritonSettings

# What the package and render decide; a value in the old repository has no say.
BY_PACKAGE = ("gpt_model_path", "tokenizer_dir", "executor_worker_path", "FORCE_CPU_ONLY_INPUT_TENSORS")
# Settings of the text models, of Triton and of the worker, which the PyTorch runtime has as well.
FOR_BOTH_ERAS = (
    "max_queue_size",
    "max_queue_delay_microseconds",
    "preprocessing_instance_count",
    "bls_instance_count",
    "bls",
    "add_special_tokens",
    "skip_special_tokens",
    "accumulate_tokens",
    "exclude_input_in_output",
    "kv_cache_free_gpu_mem_fraction",
)
TENSOR_TYPES = {
    "logits_datatype": ("output", "context_logits"),
    "encoder_input_features_data_type": ("input", "encoder_input_features"),
    "prompt_embedding_table_data_type": ("input", "prompt_embedding_table"),
}
DTYPES = ("float16", "bfloat16", "float32")


def _flag(text: str) -> bool:
    return text.lower() in ("true", "1")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


# Setting of the backend -> argument of tensorrt_llm.LLM, and how its value is read.
LLM_ARGUMENTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "max_tokens_in_paged_kv_cache": ("kv_cache_config.max_tokens", int),
    "max_attention_window_size": ("kv_cache_config.max_attention_window", _numbers),
    "sink_token_length": ("kv_cache_config.sink_token_length", int),
    "enable_kv_cache_reuse": ("kv_cache_config.enable_block_reuse", _flag),
    "kv_cache_host_memory_bytes": ("kv_cache_config.host_cache_size", int),
    "kv_cache_onboard_blocks": ("kv_cache_config.onboard_blocks", _flag),
    "cross_kv_cache_fraction": ("kv_cache_config.cross_kv_cache_fraction", float),
    "enable_chunked_context": ("enable_chunked_prefill", _flag),
    "batch_scheduler_policy": ("scheduler_config.capacity_scheduler_policy", str.upper),
    "max_beam_width": ("max_beam_width", int),
    "guided_decoding_backend": ("guided_decoding_backend", str),
    "iter_stats_max_iterations": ("iter_stats_max_iterations", int),
    "request_stats_max_iterations": ("request_stats_max_iterations", int),
}


def read_engine(repository: Repository, engine: Model, to: Era) -> Reading:
    """The engine model and the text models around it."""
    reading = Reading(sizes=_engine_sizes(engine), checkpoint=_checkpoint(repository))
    for row in [*_engine_rows(engine), *_text_rows(repository)]:
        if row.outcome != "carried":
            reading.rows.append(row)
        elif row.key == "max_batch_size":
            reading.sizes["max_batch_size"] = int(row.value)
            reading.rows.append(row)
        elif to == "engine" or row.key in FOR_BOTH_ERAS:
            reading.settings[row.key] = row.value
            reading.rows.append(row)
        else:
            reading.rows.append(_as_argument(row, reading))
    return reading


def _as_argument(row: Row, reading: Reading) -> Row:
    """Turn a setting into an argument of tensorrt_llm.LLM, where there is one; its default needs none."""
    if row.key not in LLM_ARGUMENTS:
        return Row(row.model, row.key, row.value, "dropped", "the PyTorch runtime has no such setting")
    name, read = LLM_ARGUMENTS[row.key]
    reading.arguments = with_argument(reading.arguments, name, read(row.value))
    return Row(row.model, row.key, row.value, "changed", f"is {name} of tensorrt_llm.LLM now")


def _engine_rows(engine: Model) -> Iterator[Row]:
    config = engine.config
    name = engine.name
    if config.max_batch_size > 0:
        yield Row(name, "max_batch_size", str(config.max_batch_size), "carried")
    queue = config.dynamic_batching
    values = {
        "max_queue_size": str(queue.default_queue_policy.max_queue_size),
        "max_queue_delay_microseconds": str(queue.max_queue_delay_microseconds),
        **{key: _tensor_type(engine, *place) for key, place in TENSOR_TYPES.items()},
    }
    yield from (Row(name, key, value, "carried") for key, value in values.items() if value)
    if not engine.is_decoupled:
        yield Row(name, "decoupled", "false", "changed", "always decoupled, which serves both ways")
    for key in sorted(config.parameters):
        value = engine.parameter(key) or ""
        if value and "${" not in value:
            yield _parameter_row(name, key, value)


def _parameter_row(model: str, key: str, value: str) -> Row:
    if key in BY_PACKAGE:
        return Row(model, key, value, "changed", "follows from the package")
    if key == "gpt_model_type" and value.lower() == "v1":
        return Row(
            model, key, value, "changed", "static batching no longer loads; batching in flight is used"
        )
    setting = TritonSettings.model_fields.get(key)
    if setting is None:
        return Row(model, key, value, "dropped", "ew has no such setting")
    if setting.annotation is bool and value not in BOOLEANS:
        return Row(model, key, value, "changed", "the backend took it as its default, and so does ew")
    if not is_setting(key, value):
        return Row(model, key, value, "dropped", "not a value that the backend takes")
    return Row(model, key, value, "carried")


def _text_rows(repository: Repository) -> Iterator[Row]:
    """Settings of the text models, found by the ends of their names; triton_cli renames the BLS model."""
    for model in repository.models.values():
        if model.config.backend != "python" or model.is_engine:
            continue
        if model.name.endswith("preprocessing"):
            yield Row(model.name, "preprocessing_instance_count", str(model.instances), "carried")
        if model.parameter("tensorrt_llm_model_name") is not None:
            yield Row(model.name, "bls_instance_count", str(model.instances), "carried")
        for key in ("add_special_tokens", "skip_special_tokens", "accumulate_tokens"):
            value = model.parameter(key)
            if value and "${" not in value and is_setting(key, value):
                yield Row(model.name, key, value, "carried")


def _tensor_type(model: Model, kind: str, name: str) -> str:
    tensor = model.tensors(kind).get(name)
    return type_name(tensor).removeprefix("TYPE_") if tensor is not None else ""


def _checkpoint(repository: Repository) -> str | None:
    """The tokenizer of preprocessing mostly is the checkpoint's folder, or its hub id."""
    for model in repository.models.values():
        given = model.parameter("tokenizer_dir") if model.name.endswith("preprocessing") else None
        if given and "${" not in given:
            is_path = given.startswith(("/", ".", "~"))
            return given if not is_path or (Path(given) / "config.json").is_file() else None
    return None


def _engine_sizes(engine: Model) -> dict[str, Any]:
    """Type, split and lengths of the engine, where it lies on this machine."""
    path = Path(engine.parameter("gpt_model_path") or "") / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        build, model = (dict(document.get(part) or {}) for part in ("build_config", "pretrained_config"))
        mapping = dict(model.get("mapping") or {})
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    sizes = {
        "tensor_parallel_size": mapping.get("tp_size", 1),
        "pipeline_parallel_size": mapping.get("pp_size", 1),
    }
    found = {key: size for key, size in sizes.items() if isinstance(size, int) and size > 1}
    dtype = {"dtype": model["dtype"]} if model.get("dtype") in DTYPES else {}
    return {**lengths(build.get("max_input_len"), build.get("max_seq_len")), **dtype, **found}
