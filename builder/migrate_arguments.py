"""Migrate: models that are described by arguments of an engine: upstream's llmapi, and vLLM's backend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from builder.compat import Era, newest_container
from builder.lint.checks_upstream import MODEL_YAML, VLLM_ARGUMENTS
from builder.lint.repository import Model
from builder.llm_args import OWNED, REFUSED, wrong_arguments
from builder.migrate_engine import DTYPES, LLM_ARGUMENTS
from builder.migrate_rows import Reading, is_setting, lengths, with_argument
from common.errors import RepositoryError

DEFAULT_OUTPUT = 2048  # of max_seq_len, which counts prompt and answer together
SIZES = ("max_batch_size", "tensor_parallel_size", "pipeline_parallel_size")
SETTING_OF = {
    "kv_cache_config.free_gpu_memory_fraction": "kv_cache_free_gpu_mem_fraction",
    **{argument: setting for setting, (argument, _) in LLM_ARGUMENTS.items()},
}
# vLLM's argument -> that of tensorrt_llm.LLM with the same meaning.
VLLM_NAMES = {
    "max_num_seqs": "max_batch_size",
    "max_model_len": "max_seq_len",
    "gpu_memory_utilization": "kv_cache_config.free_gpu_memory_fraction",
    "enable_prefix_caching": "kv_cache_config.enable_block_reuse",
    "enable_chunked_prefill": "enable_chunked_prefill",
}
CHANGED_MEANINGS = {
    "gpu_memory_utilization": "share of what is free after loading, not of the whole GPU",
    "max_model_len": "prompt and answer have limits of their own: max_input_len, max_output_len",
}
TRITON_CONFIG = {
    "max_batch_size": "one prompt a request, as before",
    "decoupled": "always decoupled, which serves both ways",
}


def read_llmapi(model: Model, to: Era) -> Reading:
    """Upstream's llmapi model: 1/model.yaml."""
    document = _document(model, MODEL_YAML, yaml.safe_load, yaml.YAMLError)
    reading = _begin(model, document)
    triton = document.pop("triton_config", None)
    for key, value in (triton if isinstance(triton, dict) else {}).items():
        name = f"triton_config.{key}"
        if key in TRITON_CONFIG:
            reading.note(model.name, name, value, "changed", TRITON_CONFIG[key])
        else:
            reading.note(model.name, name, value, "dropped", "ew has no such setting")
    _read_arguments(model, dict(_flat(document)), reading, to)
    if model.instances > 1:
        note = "one instance; run several behind one address with the deployment's replicas"
        reading.note(model.name, "instance_group", model.instances, "dropped", note)
    return reading


def read_vllm(model: Model, to: Era) -> Reading:
    """vLLM's own backend, also as triton_cli writes it: 1/model.json."""
    document = _document(model, VLLM_ARGUMENTS, json.loads, ValueError)
    reading = _begin(model, document)
    renamed: dict[str, Any] = {}
    for key, value in document.items():
        if key in VLLM_NAMES or key in (*SIZES, "dtype", "revision", "trust_remote_code"):
            renamed[key] = value
        else:
            reading.note(model.name, key, value, "dropped", "ew's vLLM worker has no such option")
    _read_arguments(model, renamed, reading, to, VLLM_NAMES)
    reading.arguments.clear()  # they are for tensorrt_llm.LLM
    return reading


def _begin(model: Model, document: dict[str, Any]) -> Reading:
    """A reading that knows the checkpoint, which is taken out of `document`."""
    reading = Reading(checkpoint=_text(document.pop("model", None)))
    reading.note(model.name, "model", reading.checkpoint or "", "changed", "the package is made from it")
    return reading


def _read_arguments(
    model: Model, flat: dict[str, Any], reading: Reading, to: Era, names: dict[str, str] | None = None
) -> None:
    """Sort arguments into sizes, settings, arguments of tensorrt_llm.LLM and what is lost."""
    known_as = names or {}
    wrong = dict(wrong_arguments(_nested(flat), newest_container().tensorrt_llm)) if names is None else {}
    for key, value in flat.items():
        name = known_as.get(key, key)
        if key in wrong:
            reading.note(model.name, key, value, "dropped", wrong[key].what)
        elif name in REFUSED:
            reading.note(model.name, key, value, "dropped", REFUSED[name])
        elif name in SIZES and isinstance(value, int):
            reading.sizes[name] = value
            reading.note(model.name, key, value, "carried", f"as {name}" if name != key else "")
        elif name == "revision" and isinstance(value, str):
            reading.revision = value
            reading.note(model.name, key, value, "carried", "as --revision of convert-trt")
        elif name in ("dtype", "max_input_len", "max_seq_len"):
            _read_size(model, key, name, value, flat, reading)
        elif name in OWNED:
            reading.note(model.name, key, value, "dropped", "follows from the package")
        else:
            _read_setting(model, key, name, value, reading, to, keeps_rest=names is None)


def _read_size(model: Model, key: str, name: str, value: Any, flat: dict[str, Any], reading: Reading) -> None:
    if name == "dtype" and value in DTYPES:
        reading.sizes["dtype"] = value
        reading.note(model.name, key, value, "carried")
    elif name == "dtype":
        reading.note(
            model.name, key, value, "changed", "convert-trt --dtype says which; float16 if not given"
        )
    elif isinstance(value, int) and value > 1:
        total = value if name == "max_seq_len" else flat.get("max_seq_len")
        reading.sizes.update(_limits(flat.get("max_input_len"), total))
        note = CHANGED_MEANINGS["max_model_len"] if name == "max_seq_len" else ""
        reading.note(model.name, key, value, "changed" if note else "carried", note)
    else:
        reading.note(model.name, key, value, "dropped", "not a length")


def _read_setting(
    model: Model, key: str, name: str, value: Any, reading: Reading, to: Era, *, keeps_rest: bool
) -> None:
    setting = SETTING_OF.get(name)
    both = setting == "kv_cache_free_gpu_mem_fraction"
    if setting and (to == "engine" or both):
        text = _setting_value(setting, value)
        if is_setting(setting, text):
            reading.settings[setting] = text
            note = CHANGED_MEANINGS.get(key, f"is {setting} of the entry's triton part now")
            reading.note(model.name, key, value, "changed", note)
            return
    if to == "pytorch" and keeps_rest:
        reading.arguments = with_argument(reading.arguments, name, value)
        reading.note(model.name, key, value, "carried", "as an argument of convert-trt")
    else:
        reading.note(model.name, key, value, "dropped", "nothing in this runtime takes it")


def _setting_value(setting: str, value: Any) -> Any:
    if setting == "batch_scheduler_policy":
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value


def _limits(longest: Any, total: Any) -> dict[str, int]:
    """Prompt and answer limits out of a prompt limit and a limit for both, either of which may be missing."""
    if both := lengths(longest, total):
        return both
    if isinstance(longest, int):
        return {"max_input_len": longest}
    output = min(DEFAULT_OUTPUT, total // 2)
    return {"max_input_len": total - output, "max_output_len": output}


def _flat(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arguments by name; those whose parts are settings of their own as a.b."""
    for key, value in document.items():
        if key in ("kv_cache_config", "scheduler_config") and isinstance(value, dict):
            yield from ((f"{key}.{inner}", part) for inner, part in value.items())
        else:
            yield key, value


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in flat.items():
        document = with_argument(document, name, value)
    return document


def _document(
    model: Model, name: str, parse: Callable[[str], Any], error_type: type[Exception]
) -> dict[str, Any]:
    folder: Path = model.served[0] if model.served else model.folder
    try:
        document = parse((folder / name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, error_type) as error:
        raise _unreadable(folder / name, str(error)) from None
    if not isinstance(document, dict):
        raise _unreadable(folder / name, "it is no mapping of names to values")
    return document


def _unreadable(path: Path, why: str) -> RepositoryError:
    return RepositoryError(f"{path} is not readable.", why=f"{why}.", code="migrate_source")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
