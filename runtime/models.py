"""Which models a service runs: ids of deploy/config.json, or package folders that then get an entry there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from builder.package import Package, load_package
from common import atomic
from common.config import MODEL_ID, DeployConfig, Engine, ModelConfig, load_config, parse_config
from common.errors import ConfigError, UsageError
from common.paths import home

DEFAULT_ENGINE: Engine = "cpu"


def resolve_models(names: list[str], engine: Engine | None) -> tuple[DeployConfig, tuple[str, ...]]:
    """The config and the model ids that `names` mean.

    Without `engine` each model has its entry's, and a new package the cpu engine. A new package folder gets
    an entry in the returned config only; `save_new_entries` writes it to the file,
    once it is clear that it can be served.

    Raises:
        UsageError, ConfigError, PackageError: an unknown name, another engine, a bad package.
    """
    if not names:
        raise UsageError("No model was named.", hint=_known_models_hint())
    config = _config()
    ids = []
    for name in names:
        model_id, entry = _find(name, engine or DEFAULT_ENGINE, config)
        _check(model_id, entry, engine)
        config.models[model_id] = entry
        ids.append(model_id)
    return config, tuple(dict.fromkeys(ids))


def save_new_entries(config: DeployConfig, ids: Iterable[str]) -> None:
    """Put the entries of `ids` that deploy/config.json lacks into it."""
    known = _config().models
    for model_id in ids:
        if model_id not in known:
            set_entry(model_id, config.models[model_id])


def set_entry(model_id: str, entry: ModelConfig) -> None:
    """Put `entry` into deploy/config.json, leaving everything else in the file as it is."""
    document = _document()
    document.setdefault("models", {})[model_id] = entry.model_dump(exclude_unset=True)
    parse_config(document, source=str(home().config))
    atomic.write_json(home().config, document)


def entry_for(package: Package, engine: Engine, **settings: Any) -> ModelConfig:
    """The config entry of a package: its own sizes and layout; a path in the home folder is kept relative."""
    manifest = package.manifest
    sizes, layout = manifest.sizes, manifest.layout
    return ModelConfig(
        engine=engine,
        model_path=_shown_path(package.folder),
        max_batch_size=sizes.max_batch_size,
        max_input_len=sizes.max_input_len,
        max_output_len=sizes.max_output_len,
        dtype=layout.dtype,  # type: ignore[arg-type]  # validated by pydantic, which names what is allowed
        tensor_parallel_size=layout.tp_size,
        pipeline_parallel_size=layout.pp_size,
        **settings,
    )


def _config() -> DeployConfig:
    return load_config(home().config) if home().config.exists() else DeployConfig()


def _find(name: str, engine: Engine, config: DeployConfig) -> tuple[str, ModelConfig]:
    """Id and entry: of `name` itself when it is an id of the config, else of the package folder it names."""
    if name in config.models:
        return name, config.models[name]
    if not _looks_like_folder(name):
        raise ConfigError(
            f"There is no model {name!r} in {home().config}.",
            why=f"It has {', '.join(config.models) or 'no models'}; no package folder has that name either.",
            hint="Add it to the file, name a package folder, or convert a model: ./ew convert-trt --help",
            code="model_unknown",
        )
    package = load_package(_folder(name))
    known = _id_of_package(package, config)
    return (known, config.models[known]) if known else _new_entry(package, engine, config)


def _looks_like_folder(name: str) -> bool:
    return "/" in name or _folder(name).is_dir()


def _folder(name: str) -> Path:
    """A path on the command line starts where the user is; one that is not there, at the home folder."""
    here = Path(name).expanduser().resolve()
    return here if here.is_dir() else home().resolve(name)


def _id_of_package(package: Package, config: DeployConfig) -> str | None:
    folder = package.folder.resolve()
    entries = config.models.items()
    return next((key for key, entry in entries if home().resolve(entry.model_path).resolve() == folder), None)


def _new_entry(package: Package, engine: Engine, config: DeployConfig) -> tuple[str, ModelConfig]:
    model_id = package.folder.resolve().name
    if not MODEL_ID.fullmatch(model_id):
        raise ConfigError(
            f"The folder {package.folder} cannot give its name to a model.",
            why="Model ids hold only letters (A-Z), digits, '.', '_' and '-'.",
            hint=f"Rename the folder, or add an entry with another id to {home().config}.",
            code="model_id_invalid",
        )
    if model_id in config.models:
        raise ConfigError(
            f"The config already has a model {model_id!r} with another package.",
            hint=f"Rename the folder {package.folder}, or add an entry with another id to {home().config}.",
            code="model_id_taken",
        )
    return model_id, entry_for(package, engine)


def _check(model_id: str, entry: ModelConfig, engine: Engine | None) -> None:
    if engine not in (None, entry.engine):
        raise ConfigError(
            f"Model {model_id!r} is configured for the engine {entry.engine}, not {engine}.",
            hint=f"Use --engine {entry.engine}, or change models.{model_id}.engine in {home().config}.",
            code="engine_mismatch",
        )
    _check_cache(model_id, entry)
    load_package(home().resolve(entry.model_path))


def _check_cache(model_id: str, entry: ModelConfig) -> None:
    """A prompt and its first token must fit the KV cache, or the longest prompts are refused for ever."""
    tokens = entry.kv_cache_tokens
    if tokens is None or tokens > entry.max_input_len:
        return
    raise ConfigError(
        f"The KV cache of {model_id!r} is too small for its prompts: kv_cache_tokens is {tokens}, "
        f"max_input_len {entry.max_input_len}.",
        why="A request needs room for its prompt and at least one token of its answer.",
        hint=f"Raise models.{model_id}.kv_cache_tokens in {home().config} to "
        f"{entry.max_input_len + entry.max_output_len} (both lengths together), lower max_input_len "
        "or leave kv_cache_tokens out to have it from memory.",
        code="kv_cache_too_small",
    )


def _shown_path(folder: Path) -> str:
    full = folder.resolve()
    return str(full.relative_to(home().root)) if full.is_relative_to(home().root) else str(full)


def _document() -> dict[str, Any]:
    if not home().config.exists():
        return {"models": {}}
    load_config(home().config)
    document: dict[str, Any] = json.loads(home().config.read_text(encoding="utf-8"))
    return document


def _known_models_hint() -> str:
    known = ", ".join(_config().models)
    return f"Use --model with one of: {known}." if known else "Run ./ew demo for a first model."
