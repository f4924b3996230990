"""What a model repository holds for one model id: the files of M, M-preprocessing, M-tensorrt_llm ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from builder import repository_text as text
from builder import repository_upstream as upstream
from builder.pbtxt import CONFIG_NAME, fill_template
from builder.repository_engine import engine_parameters
from builder.repository_target import Target, check_target
from builder.repository_worker import WORKER_FILE, bridge_files, worker_json
from common.errors import ConfigError

STEPS = ("preprocessing", "tensorrt_llm", "postprocessing")
KEEP = ".keep"


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model id, relative to the repository, and the folders they make up."""

    model_id: str
    files: dict[str, bytes]

    @property
    def folders(self) -> set[str]:
        return {name.split("/", 1)[0] for name in self.files}


@dataclass(frozen=True)
class _Kind:
    """One Triton model: its template, its parameters, and what is in a version folder of it."""

    name: str
    template: str
    parameters: Callable[[Target], dict[str, Any]]
    files: Callable[[Target], dict[str, bytes]]
    has_versions: bool = True


def model_files(targets: Sequence[Target]) -> ModelFiles:
    """Everything that is rendered for one model id.

    Args:
        targets: its versions, the newest last; they share each config.pbtxt, which is the newest one's.

    Raises:
        UsageError: a version of TensorRT-LLM has no engine backend, or the layout does not fit the engine.
        ConfigError: several versions of an engine that NVIDIA's backend serves.
        PackageError: a package lacks a tokenizer, or an engine that is needed.
        RepositoryError: a template cannot be filled or does not give a valid configuration.
    """
    newest = targets[-1]
    _refuse_engine_versions(targets)
    files: dict[str, bytes] = {}
    for target in targets:
        check_target(target)
    for kind in _kinds(newest):
        folder = newest.folder(kind.name)
        served = targets if kind.has_versions else targets[-1:]
        files[f"{folder}/{CONFIG_NAME}"] = _config(newest, kind, [target.version for target in served])
        for target in served:
            parts = kind.files(target) or {KEEP: b""}
            files.update({f"{folder}/{target.version}/{name}": content for name, content in parts.items()})
    return ModelFiles(newest.model_id, files)


def _kinds(target: Target) -> list[_Kind]:
    if target.driver == "vllm":
        return [_Kind("vllm", "vllm", _nothing, upstream.vllm_files)]
    if target.layout == "llmapi":
        return [_Kind("tensorrt_llm", "llmapi", upstream.llmapi_parameters, upstream.llmapi_files)]
    kinds = [
        _Kind("ensemble", "ensemble", _nothing, _nothing, has_versions=False),
        _Kind("preprocessing", "preprocessing", text.preprocessing_parameters, text.preprocessing_files),
        _Kind("tensorrt_llm", "tensorrt_llm", engine_parameters, _engine_files),
        _Kind("postprocessing", "postprocessing", text.postprocessing_parameters, text.postprocessing_files),
    ]
    if target.config.triton.bls:
        kinds.append(_Kind("tensorrt_llm_bls", "tensorrt_llm_bls", text.bls_parameters, text.bls_files))
    return kinds


def _nothing(target: Target) -> dict[str, Any]:
    return {}


def _engine_files(target: Target) -> dict[str, bytes]:
    if target.driver == "native":
        return {}
    bridge = bridge_files() if target.driver == "bridge-model" else {}
    return {WORKER_FILE: worker_json(target), **bridge}


def _config(target: Target, kind: _Kind, versions: list[int]) -> bytes:
    variables = {
        **target.config.triton.model_dump(),
        **upstream.llmapi_variables(target),
        "name": target.folder(kind.name),
        "steps": {step: target.folder(step) for step in STEPS},
        "backend": "python" if target.driver == "bridge-model" else "tensorrtllm",
        "max_batch_size": target.config.max_batch_size,
        "has_token_counts": not target.is_older_backend,
        "parameters": {key: _parameter_text(value) for key, value in kind.parameters(target).items()},
    }
    if target.is_older_backend:
        variables["prompt_embedding_table_data_type"] = "FP16"
    return (fill_template(kind.template, variables) + _version_policy(versions)).encode()


def _version_policy(versions: list[int]) -> str:
    """Triton serves the newest version only, unless it is told which."""
    if len(versions) == 1:
        return ""
    listed = ", ".join(map(str, versions))
    return f"version_policy: {{ specific: {{ versions: [ {listed} ] }} }}\n"


def _parameter_text(value: Any) -> str:
    """How the backend reads a value: lower-case booleans, empty for not set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _refuse_engine_versions(targets: Sequence[Target]) -> None:
    """NVIDIA's backend takes the engine's path from the configuration, which all versions share."""
    if len(targets) > 1 and any(target.driver == "native" for target in targets):
        raise ConfigError(
            f"models.{targets[-1].model_id}.older_versions cannot be served.",
            why="TensorRT engines are named in config.pbtxt, which all versions of a model share.",
            hint="Give the other engine a model id of its own.",
            code="engine_versions",
        )
