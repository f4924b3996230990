"""One version of one model to render: what serves it, what its folders are called, where its files lie."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.package import Package
from common.config import ModelConfig
from common.errors import PackageError, UsageError

Layout = Literal["ew", "upstream", "llmapi"]
Driver = Literal["native", "bridge-backend", "bridge-model", "vllm"]
OLDEST_VERSION, NEWEST_VERSION = (0, 17), (1, 2)
NEWER_TEMPLATE = (0, 21)  # 0.20 has no token counts, no enable_trt_overlap and FP16 prompt tables only


@dataclass(frozen=True)
class Target:
    """A package under a model id and version number, and the repository it goes to."""

    model_id: str
    config: ModelConfig
    package: Package
    version: int
    repository: Path
    trtllm_version: str
    layout: Layout

    @property
    def is_older_backend(self) -> bool:
        """Whether NVIDIA's backend is of the 0.17 to 0.20 generation."""
        return self.driver == "native" and version_numbers(self.trtllm_version) < NEWER_TEMPLATE

    @property
    def driver(self) -> Driver:
        """What stands behind it: NVIDIA's backend, our backend of its name, our Python model, or vLLM's."""
        if is_plain_vllm(self.config, self.layout):
            return "vllm"
        if self.config.engine == "cpu":
            return "bridge-backend"
        pytorch_era = self.package.manifest.runtime.era == "pytorch"
        return "bridge-model" if self.config.engine != "cuda-trt" or pytorch_era else "native"

    def folder(self, kind: str) -> str:
        if has_fixed_names(self.config, self.layout):
            return kind
        return self.model_id if kind in ("ensemble", "vllm") else f"{self.model_id}-{kind}"

    def portable(self, path: Path) -> str:
        """`path` as the version folder sees it where one tree (which may move) holds both, else absolute."""
        version_folder = self.repository / self.folder("tensorrt_llm") / str(self.version)
        if path.is_relative_to(self.repository.parent):
            return os.path.relpath(path, version_folder)
        return str(path)


def is_plain_vllm(config: ModelConfig, layout: Layout) -> bool:
    """Whether vLLM's own backend serves it, under the model's own name."""
    return config.engine == "cuda-vllm" and layout == "upstream"


def has_fixed_names(config: ModelConfig, layout: Layout) -> bool:
    """Whether its folders are called as upstream calls them, which leaves room for one such model."""
    return layout != "ew" and not is_plain_vllm(config, layout)


def check_target(target: Target) -> None:
    """Refuse what cannot be served.

    Raises:
        UsageError: NVIDIA's backend does not exist for this version, or the layout does not fit the engine.
    """
    if target.layout == "llmapi" and target.driver == "native":
        raise UsageError(
            f"{target.model_id} is a TensorRT engine; upstream's llmapi model serves checkpoints.",
            hint="Use --layout upstream, or convert with --runtime pytorch.",
            code="layout_unfit",
        )
    supported = OLDEST_VERSION <= version_numbers(target.trtllm_version) <= NEWEST_VERSION
    if target.driver == "native" and not supported:
        raise UsageError(
            f"TensorRT-LLM {target.trtllm_version} cannot serve an engine through this repository.",
            why="The engine backend for Triton is supported from 0.17 to 1.2; 1.3 removed it.",
            hint="Use --trtllm-version with your container's version, or convert with --runtime pytorch.",
            code="trtllm_version",
        )


def model_path(target: Target) -> Path:
    """The engine folder for NVIDIA's backend, the checkpoint for engines driven from Python.

    Raises:
        PackageError: the engine was not built yet.
    """
    package = target.package
    if target.driver != "native":
        return package.checkpoint
    if not package.has_engine:
        raise PackageError(
            f"The package {package.folder} has no TensorRT engine yet.",
            why=package.manifest.engine.reason,
            hint=shlex.join(package.manifest.engine.command)
            or "Run ./ew convert-trt on a machine with a GPU.",
            code="engine_pending",
        )
    return package.engine


def version_numbers(version: str) -> tuple[int, int]:
    """Major and minor version; (0, 0) for a text that is no version."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
