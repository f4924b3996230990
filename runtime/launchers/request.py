"""What a launch is asked for, and what is planned for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from builder.compat import Era
from common.config import Engine
from runtime.launch import Command
from runtime.ports import TritonPorts

Launcher = Literal["local", "pytriton", "docker"]
LauncherChoice = Literal["auto", "local", "pytriton", "docker"]
Parallel = Literal["single", "leader", "orchestrator", "llmapi"]
ParallelChoice = Literal["auto", "leader", "orchestrator", "llmapi"]

LOG_NAME = "triton"


@dataclass(frozen=True)
class ServedModel:
    """A rendered model and what its package says.

    `era` is None for engines that have none. `tensorrt_llm` and `capability` are those the engine was built
    with, where one was built, else what the package is planned for. `weight_bytes` is what one rank loads.
    """

    model_id: str
    package: Path
    era: Era | None = None
    tp_size: int = 1
    pp_size: int = 1
    tensorrt_llm: str | None = None
    capability: str | None = None
    weight_bytes: int = 0
    engine_pending: str = ""
    num_nodes: int = 1

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def engine_model(self) -> str:
        """The Triton model that holds the engine."""
        return f"{self.model_id}-tensorrt_llm"


@dataclass(frozen=True)
class LaunchRequest:
    """One tritonserver for models of one engine; paths are absolute.

    `worker_python` is the interpreter of the engine's environment, where there is one; `triton_options` go to
    tritonserver as they are; `gpus` are nvidia-smi's indices, the ones with most free memory when empty.
    """

    engine: Engine
    models: tuple[ServedModel, ...]
    repository: Path
    home: Path
    source_root: Path
    service_id: str
    ports: TritonPorts = TritonPorts()
    launcher: LauncherChoice = "auto"
    parallel: ParallelChoice = "auto"
    gpus: tuple[int, ...] = ()
    image: str | None = None
    worker_python: Path | None = None
    triton_options: tuple[str, ...] = ()
    shm_size: str = "2g"
    oversubscribe: bool = False

    @property
    def era(self) -> Era | None:
        return self.models[0].era if self.models else None

    @property
    def needs_bridge(self) -> bool:
        """Whether the engine is driven from Python; only the engine era has a C++ backend."""
        return self.era != "engine"

    @property
    def world_size(self) -> int:
        """GPUs of the largest model; models of one server share them."""
        return max((model.world_size for model in self.models), default=1)

    @property
    def local_gpus(self) -> int:
        """GPUs that this machine has to have: models on several nodes have the rest of theirs elsewhere."""
        return max((-(-model.world_size // model.num_nodes) for model in self.models), default=1)

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def cache(self) -> Path:
        return self.home / ".cache"

    @property
    def backends(self) -> Path:
        """Where the bridge is installed as a Triton backend."""
        return self.cache / "backends"


@dataclass(frozen=True)
class LaunchPlan:
    """The decision; `stop` ends what outlives its process, such as a container."""

    launcher: Launcher
    reason: str
    command: Command
    parallel: Parallel = "single"
    gpus: tuple[int, ...] = ()
    image: str | None = None
    stop: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "launcher": self.launcher,
            "reason": self.reason,
            "parallel": self.parallel,
            "gpus": list(self.gpus),
            "image": self.image,
            "warnings": list(self.warnings),
            "stop": list(self.stop),
        }
