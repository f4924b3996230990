"""`ew migrate`: an upstream Triton repository -> an entry of deploy/config.json.

That is the inflight_batcher_llm layout, also as triton_cli writes it.

The engine itself is not taken over: the entry names a package, which `convert-trt` makes from the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from builder.lint.parameters import BOOLEANS
from builder.lint.repository import Model, Options, Repository, load_repository, type_name
from common.errors import RepositoryError
from common.triton_settings import TritonSettings

Era = Literal["engine", "pytorch"]
Outcome = Literal["carried", "changed", "dropped"]

# What the package and render decide; a value in the old repository has no say.
BY_PACKAGE = ("gpt_model_path", "tokenizer_dir", "executor_worker_path", "FORCE_CPU_ONLY_INPUT_TENSORS")
# Settings of the text models and of Triton, which the PyTorch runtime has as well.
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
)
PYTORCH_NAMES = {
    "kv_cache_free_gpu_mem_fraction": "kv_cache_config.free_gpu_memory_fraction",
    "max_tokens_in_paged_kv_cache": "kv_cache_config.max_tokens",
    "enable_kv_cache_reuse": "kv_cache_config.enable_block_reuse",
    "kv_cache_host_memory_bytes": "kv_cache_config.host_cache_size",
    "enable_chunked_context": "enable_chunked_prefill",
    "batch_scheduler_policy": "scheduler_config.capacity_scheduler_policy",
    "max_beam_width": "max_beam_width",
}
TENSOR_TYPES = {
    "logits_datatype": ("output", "context_logits"),
    "encoder_input_features_data_type": ("input", "encoder_input_features"),
    "prompt_embedding_table_data_type": ("input", "prompt_embedding_table"),
}


@dataclass(frozen=True)
class Row:
    """One value of the old repository and what became of it."""

    model: str
    key: str
    value: str
    outcome: Outcome
    note: str = ""


@dataclass
class Migration:
    """A model's entry for deploy/config.json, and the table of how it came about."""

    entry: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def of(self, outcome: Outcome) -> list[Row]:
        return [row for row in self.rows if row.outcome == outcome]


def migrate(source: Path, *, to: Era, package: str) -> Migration:
    """Read an upstream repository.

    Args:
        to: the runtime that will serve it; `pytorch` has no counterpart for many engine settings.
        package: the package's folder, as it will stand in `model_path`.

    Raises:
        RepositoryError: no repository, no engine model in it, or several.
    """
    repository = load_repository(source, Options(check_paths=False))
    engine = _engine_model(repository)
    rows = [*_rows(repository, engine, to)]
    carried = {row.key: row.value for row in rows if row.outcome == "carried"}
    sizes = {key: int(carried.pop(key)) for key in tuple(carried) if key in ("max_batch_size",)}
    entry = {"engine": "cuda-trt", "model_path": package, **sizes, **_engine_sizes(engine)}
    settings = TritonSettings.model_validate(_typed(carried)).model_dump(exclude_defaults=True)
    return Migration({**entry, **({"triton": settings} if settings else {})}, rows)


def _engine_model(repository: Repository) -> Model:
    engines = [model for model in repository.models.values() if model.is_engine]
    if len(engines) == 1:
        return engines[0]
    found = ", ".join(model.name for model in engines)
    raise RepositoryError(
        f"{repository.root} has {len(engines)} TensorRT-LLM models; one is expected.",
        why=f"Found: {found}." if found else "No model has backend tensorrtllm or a gpt_model_type.",
        hint="Run ./ew lint on it first; a configuration that does not parse is not seen here.",
        code="migrate_source",
    )


def _rows(repository: Repository, engine: Model, to: Era) -> Iterator[Row]:
    for row in [*_engine_rows(engine), *_text_rows(repository)]:
        if to == "pytorch" and row.outcome == "carried" and row.key not in (*FOR_BOTH_ERAS, "max_batch_size"):
            yield _pytorch_row(row)
        else:
            yield row


def _pytorch_row(row: Row) -> Row:
    name = PYTORCH_NAMES.get(row.key)
    if name:
        note = f"set {name} for tensorrt_llm.LLM with convert-trt --runtime pytorch"
        return Row(row.model, row.key, row.value, "changed", note)
    return Row(row.model, row.key, row.value, "dropped", "the PyTorch runtime has no such setting")


def _engine_rows(engine: Model) -> Iterator[Row]:
    config = engine.config
    name = engine.name
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
    if not _is_valid(key, value):
        return Row(model, key, value, "dropped", "not a value that the backend takes")
    return Row(model, key, value, "carried")


def _text_rows(repository: Repository) -> Iterator[Row]:
    """Settings of the text models, found by the ends of their names."""
    for model in repository.models.values():
        if model.config.backend != "python" or model.is_engine:
            continue
        if model.name.endswith("preprocessing"):
            yield Row(model.name, "preprocessing_instance_count", _instances(model), "carried")
        if model.parameter("tensorrt_llm_model_name") is not None:
            yield Row(model.name, "bls_instance_count", _instances(model), "carried")
        for key in ("add_special_tokens", "skip_special_tokens", "accumulate_tokens"):
            value = model.parameter(key)
            if value and "${" not in value and _is_valid(key, value):
                yield Row(model.name, key, value, "carried")


def _instances(model: Model) -> str:
    return str(sum(max(group.count, 1) for group in model.config.instance_group) or 1)


def _tensor_type(model: Model, kind: str, name: str) -> str:
    tensor = model.tensors(kind).get(name)
    return type_name(tensor).removeprefix("TYPE_") if tensor is not None else ""


def _is_valid(key: str, value: str) -> bool:
    setting = TritonSettings.model_fields[key]
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(Annotated[setting.annotation, setting])  # type: ignore[arg-type]
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def _typed(carried: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in carried.items() if key in TritonSettings.model_fields}


def _engine_sizes(engine: Model) -> dict[str, int]:
    """Longest input and output of the engine, where it lies on this machine."""
    path = Path(engine.parameter("gpt_model_path") or "") / "config.json"
    try:
        build = json.loads(path.read_text(encoding="utf-8")).get("build_config", {})
    except (OSError, ValueError):
        return {}
    longest, total = build.get("max_input_len"), build.get("max_seq_len")
    if not isinstance(longest, int) or not isinstance(total, int) or total <= longest:
        return {}
    return {"max_input_len": longest, "max_output_len": total - longest}
