"""`ew migrate`: a model of an upstream Triton repository -> an entry of deploy/config.json.

Read are the inflight_batcher_llm layout, the llmapi layout and vLLM's, also as triton_cli writes them. The
weights are not touched: the entry names a package, which `convert-trt` makes from the checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.compat import Era
from builder.lint.checks_upstream import is_llmapi
from builder.lint.repository import Model, Options, Repository, load_repository
from builder.migrate_arguments import read_llmapi, read_vllm
from builder.migrate_engine import read_engine
from builder.migrate_rows import Outcome, Reading, Row
from builder.repository_changes import read_record
from common.errors import RepositoryError
from common.triton_settings import TritonSettings

CHECKPOINT = "CHECKPOINT"
OPTIONS = {
    "dtype": "--dtype",
    "tensor_parallel_size": "--tp-size",
    "pipeline_parallel_size": "--pp-size",
    "max_batch_size": "--max-batch-size",
    "max_input_len": "--max-input-len",
    "max_output_len": "--max-output-len",
}


@dataclass
class Migration:
    """A model's entry for deploy/config.json, the table of how it came about, and what makes its package.

    `command` is a convert-trt command; CHECKPOINT stands in it where the old repository does not say which.
    `note` says that the model was rendered by ew, whose entry it has already; "" for all others.
    """

    entry: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    note: str = ""

    def of(self, outcome: Outcome) -> list[Row]:
        return [row for row in self.rows if row.outcome == outcome]


def migrate(source: Path, *, to: Era, package: str, name: str | None = None) -> Migration:
    """Read a model of an upstream repository.

    Args:
        to: the runtime that will serve it; `pytorch` has no counterpart for many engine settings.
        package: the package's folder, as it will stand in `model_path`.
        name: which of its models, where there are several.

    Raises:
        RepositoryError: no repository, no such model in it, or several.
    """
    repository = load_repository(source, Options(check_paths=False))
    model = _choose(repository, name)
    reading, engine = _read(repository, model, to)
    rendered = _rendered_as(repository, model)
    if rendered and model.is_engine:
        reading.checkpoint = None  # what its tokenizer_dir names is the tokenizer in the repository itself
    settings = TritonSettings.model_validate(reading.settings).model_dump(exclude_defaults=True)
    entry = {"engine": engine, "model_path": package, **reading.sizes}
    return Migration(
        {**entry, **({"triton": settings} if settings else {})},
        reading.rows,
        _command(reading, to, package),
        _own_note(repository, rendered) if rendered else "",
    )


def _rendered_as(repository: Repository, model: Model) -> str | None:
    """The id of the entry that ew rendered the model from; None where somebody else made it."""
    name = f"{model.name}/config.pbtxt"
    rendered = read_record(repository.root).models.items()
    return next((model_id for model_id, files in rendered if name in files), None)


def _own_note(repository: Repository, model_id: str) -> str:
    return (
        f"{repository.root} was rendered by ew: its deploy/config.json has this entry already, as {model_id}."
        " To serve it elsewhere, copy that entry and its package, and render there; migrate is needed only "
        "to serve it with another runtime, which takes a package made anew from the checkpoint."
    )


def _read(repository: Repository, model: Model, to: Era) -> tuple[Reading, str]:
    if model.config.backend == "vllm":
        return read_vllm(model, to), "cuda-vllm" if to == "pytorch" else "cuda-trt"
    if is_llmapi(model):
        return read_llmapi(model, to), "cuda-trt"
    return read_engine(repository, model, to), "cuda-trt"


def _choose(repository: Repository, name: str | None) -> Model:
    models = [
        model
        for model in repository.models.values()
        if model.is_engine or model.config.backend == "vllm" or is_llmapi(model)
    ]
    chosen = [model for model in models if name in (None, model.name)]
    if len(chosen) == 1:
        return chosen[0]
    raise _not_one(repository, models, chosen, name)


def _not_one(
    repository: Repository, models: list[Model], chosen: list[Model], name: str | None
) -> RepositoryError:
    what = f"models called {name}" if name else "models to migrate"
    if models:
        why = f"Found: {', '.join(model.name for model in models)}."
        hint = "Name one with --source-model."
    else:
        why = "No model has backend tensorrtllm or vllm, a gpt_model_type or a model.yaml."
        hint = "Run ./ew lint on it first; a configuration that does not parse is not seen here."
    return RepositoryError(
        f"{repository.root} has {len(chosen)} {what}; one is expected.",
        why=why,
        hint=hint,
        code="migrate_source",
    )


def _command(reading: Reading, to: Era, package: str) -> list[str]:
    """The convert-trt command whose package fits the entry."""
    sizes = [(option, str(reading.sizes[key])) for key, option in OPTIONS.items() if key in reading.sizes]
    revision = ("--revision", reading.revision) if reading.revision else ()
    return [
        *("./ew", "convert-trt", "--model", reading.checkpoint or CHECKPOINT),
        *("--output", package, "--runtime", to, *revision),
        *(part for pair in sizes for part in pair),
        *(part for name, value in _llm_options(reading.arguments) for part in (f"--{name}", value)),
    ]


def _llm_options(arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """Arguments of tensorrt_llm.LLM as options of convert-trt, which reads values as JSON if they parse."""
    options = []
    for name, value in arguments.items():
        if isinstance(value, dict) and name in ("kv_cache_config", "scheduler_config"):
            options += [(f"{name}.{inner}", _option_text(part)) for inner, part in value.items()]
        else:
            options.append((name, _option_text(value)))
    return options


def _option_text(value: Any) -> str:
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, ensure_ascii=False)
