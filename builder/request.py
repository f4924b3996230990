"""What a conversion is asked for and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from builder.compat import RuntimeChoice
from builder.manifest import Manifest
from builder.plan import Plan
from common.errors import UsageError

Stage = Literal["plan", "checkpoint", "engine"]
Dtype = Literal["float16", "bfloat16", "float32"]
Action = Literal["planned", "converted", "resumed", "linked", "reused"]
# (phase, bytes done, bytes total); a total of 0 means that the length is not known
Progress = Callable[[str, int, int], None]

DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16", "float32")
STAGES: tuple[Stage, ...] = ("plan", "checkpoint", "engine")
RUNTIMES: tuple[RuntimeChoice, ...] = ("auto", "engine", "pytorch")


@dataclass(frozen=True)
class ConvertRequest:
    """One conversion. Defaults are those of the documented command line; lengths are in tokens.

    Args:
        output: the package folder.
        moe_tp_size, moe_ep_size: how experts are shared out; 0 means the rest of tp_size.
        embedding_sharding_dim: with use_parallel_embedding, 0 cuts the vocabulary, 1 the hidden size.
        extra: options for trtllm-build (engine era) or tensorrt_llm.LLM (PyTorch era), as on a command line.
        own_options: names that the nearest match of a misspelled extra option may suggest.
        gpu, gpu_memory: what to plan for when it is not the GPU of this machine; memory in bytes.
        workers: threads of the conversion; 0 chooses.
        cache: folder of the package index; `.cache/packages` of the installation when None.
    """

    model: str
    output: Path
    model_type: str | None = None
    dtype: Dtype = "float16"
    tp_size: int = 1
    pp_size: int = 1
    moe_tp_size: int = 0
    moe_ep_size: int = 0
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0
    max_batch_size: int = 64
    max_input_len: int = 4096
    max_output_len: int = 2048
    stage: Stage = "engine"
    runtime: RuntimeChoice = "auto"
    trtllm_version: str | None = None
    quantization: str | None = None
    calibration: Path | None = None
    revision: str | None = None
    workers: int = 0
    force: bool = False
    resume: bool = True
    allow_pickle: bool = False
    gpu: str | None = None
    gpu_memory: int | None = None
    extra: tuple[str, ...] = ()
    own_options: tuple[str, ...] = ()
    cache: Path | None = None

    def __post_init__(self) -> None:
        for name in ("tp_size", "pp_size", "max_batch_size", "max_input_len", "max_output_len"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise UsageError(
                    f"--{option} must be at least 1, not {getattr(self, name)}.", code="bad_size"
                )
        if self.workers < 0:
            raise UsageError(f"--workers must not be negative, not {self.workers}.", code="bad_size")


@dataclass(frozen=True)
class ConvertResult:
    """What happened. `manifest` is None when only a plan was asked for."""

    action: Action
    folder: Path
    manifest: Manifest | None
    plan: Plan
    seconds: float
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        engine = self.manifest.engine if self.manifest else None
        return {
            "action": self.action,
            "package": str(self.folder),
            "engine": engine.state if engine else "none",
            "engine_command": engine.command if engine else [],
            "engine_reason": engine.reason if engine else "",
            "seconds": round(self.seconds, 3),
            "bytes": sum(entry.bytes for entry in self.manifest.files.values()) if self.manifest else 0,
            "warnings": list(self.warnings),
            "plan": self.plan.as_dict(),
        }
