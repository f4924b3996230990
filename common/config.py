"""deploy/config.json: the one file that says which models are served and how."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from common.errors import ConfigError
from common.triton_settings import TritonSettings

Engine = Literal["cpu", "cuda-trt", "cuda-vllm", "cuda-hf"]
Dtype = Literal["float16", "bfloat16", "float32"]
Precision = Literal["exact", "fast", "int8"]

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(StrictModel):
    """One served model. Sizes are in tokens; `model_path` is a package made by `convert-trt`."""

    engine: Engine = Field(description="What runs the model: cpu, cuda-trt, cuda-vllm or cuda-hf.")
    model_path: str = Field(
        min_length=1, description="Package folder, absolute or relative to the ew folder."
    )
    version: int = Field(1, ge=1, description="Version folder that model_path is rendered as.")
    older_versions: dict[int, str] = Field(
        default_factory=dict,
        description='Further packages that stay served, by lower version numbers: {"1": "models/old"}.',
    )
    max_batch_size: int = Field(64, ge=1, le=4096, description="Requests in flight at once.")
    max_input_len: int = Field(4096, ge=1, description="Longest prompt, in tokens.")
    max_output_len: int = Field(2048, ge=1, description="Longest answer, in tokens.")
    dtype: Dtype = Field("float16", description="Weight type of the TRT-LLM checkpoint.")
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="GPUs that share each layer.")
    pipeline_parallel_size: int = Field(1, ge=1, le=64, description="Groups of layers on separate GPUs.")
    precision: Precision = Field(
        "fast",
        description="cpu engine: exact (f32, as transformers), fast (bf16 where the CPU has it) or int8.",
    )
    kv_cache_tokens: int | None = Field(
        None, ge=64, description="cpu engine: tokens that fit the KV cache; from memory when not set."
    )
    idle_unload_seconds: float | None = Field(
        None, gt=0, description="Unload the model after so long without a request; the next one loads it."
    )
    env: str | None = Field(
        None,
        min_length=1,
        description="Environment of ./ew setup to run it in; the engine's first if not set.",
    )
    triton: TritonSettings = Field(
        default_factory=lambda: TritonSettings.model_validate({}),
        description="Settings of the rendered Triton models.",
    )

    @field_validator("older_versions")
    @classmethod
    def _older_are_lower(cls, older: dict[int, str], info: ValidationInfo) -> dict[int, str]:
        """A request that names no version goes to the highest one, so that must be model_path's."""
        newest = info.data.get("version", 1)
        wrong = [number for number in older if not 1 <= number < newest]
        if wrong:
            raise ValueError(f"version {wrong[0]} must be 1 or more and lower than version ({newest})")
        return older


class DeployConfig(StrictModel):
    """The whole file: model id -> model."""

    models: dict[str, ModelConfig] = Field(default_factory=dict)

    @field_validator("models")
    @classmethod
    def _ids_are_names(cls, models: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
        for model_id in models:
            if not MODEL_ID.fullmatch(model_id):
                raise ValueError(f"model id {model_id!r} may hold only letters, digits, '.', '_' and '-'")
        return models


def load_config(path: Path) -> DeployConfig:
    """Read and validate a config file.

    Raises:
        ConfigError: not found, not JSON, or a key or value that is not allowed; names each one.
    """
    return parse_config(_read_json(path), source=str(path))


def parse_config(document: Any, *, source: str = "config") -> DeployConfig:
    """Validate an already parsed config document; `source` is named in errors."""
    try:
        return DeployConfig.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(_describe(problem) for problem in error.errors())
        raise ConfigError(
            f"{source} is not valid: {problems}.",
            hint=f"Edit {source}; README.md shows a complete example.",
            code="config_invalid",
        ) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no config file {path}.",
            hint="Run ./ew demo for a working one, or write it as README.md shows.",
            code="config_missing",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"{path} is not readable JSON.",
            why=f"{error}.",
            hint="Correct it there; README.md shows a complete example.",
            code="config_invalid",
        ) from None


def _describe(problem: Any) -> str:
    """One pydantic problem as: path of the key, what was found, what is allowed."""
    location = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        return f"{location}: unknown key{_nearest(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{location}: required, but not there"
    found = json.dumps(problem["input"], ensure_ascii=False, default=str)
    return f"{location}: found {found[:80]}; {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _nearest(location: tuple[str | int, ...]) -> str:
    allowed = _fields_at(location)
    match = difflib.get_close_matches(str(location[-1]), allowed, n=1)
    return f", did you mean {match[0]!r}?" if match else f"; allowed are {', '.join(allowed)}"


def _fields_at(location: tuple[str | int, ...]) -> dict[str, FieldInfo]:
    """The keys that are allowed beside the last one of `location`: models.ID.triton.KEY and so on."""
    by_depth: dict[int, type[BaseModel]] = {1: DeployConfig, 3: ModelConfig, 4: TritonSettings}
    return by_depth.get(len(location), ModelConfig).model_fields
