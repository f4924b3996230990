"""What a launch needs to know about a model, out of its package."""

from __future__ import annotations

import re

from builder.compat import Era
from builder.package import Package
from common.config import Engine
from runtime.launchers.request import ServedModel

RANK_FILE = re.compile(r"(?:checkpoint/rank\d+\.safetensors|engine/rank\d+\.engine)")


def served_model(model_id: str, package: Package, engine: Engine) -> ServedModel:
    """The launch's view of a package; only cuda-trt has eras."""
    manifest = package.manifest
    era: Era | None = manifest.runtime.era if engine == "cuda-trt" else None
    pending = era == "engine" and not package.has_engine
    return ServedModel(
        model_id,
        package.folder,
        era=era,
        tp_size=manifest.layout.tp_size,
        pp_size=manifest.layout.pp_size,
        tensorrt_llm=manifest.engine.tensorrt_llm or manifest.runtime.tensorrt_llm,
        capability=manifest.engine.compute_capability if package.has_engine else None,
        weight_bytes=_largest_rank(package, "engine" if package.has_engine else "checkpoint"),
        engine_pending=manifest.engine.reason if pending else "",
    )


def _largest_rank(package: Package, part: str) -> int:
    files = package.manifest.files.items()
    sizes = [entry.bytes for name, entry in files if name.startswith(part) and RANK_FILE.fullmatch(name)]
    return max(sizes, default=0)
