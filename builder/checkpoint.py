"""From Hugging Face weights to a TensorRT-LLM checkpoint folder, and back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from builder.digests import sha256_of
from builder.families import Layout, read_dims, trtllm_config, weight_map
from builder.families.layout import STORED_NAMES
from builder.families.placement import PADDING, Block
from builder.inspect import read_config, read_config_object
from builder.shard import HEAD, ShardPlan, Target, rank_targets, source_shapes
from builder.sources import Source
from builder.writer import Progress, Wishes, fill
from common.atomic import remove_leftovers, write_json
from common.casts import Array
from common.tensors import TensorFile, write_error

MOST_WORKERS = 4


@dataclass(frozen=True)
class CheckpointReport:
    """What a conversion did.

    Args:
        files: config.json and the rank files, in order.
        nbytes: size of the rank files; `reused_bytes` of them came from an interrupted run.
        seconds: wall time.
        overflows: source tensor -> numbers that became infinite, because the new type ends before them.
    """

    folder: Path
    files: tuple[Path, ...]
    nbytes: int
    reused_bytes: int
    seconds: float
    taken_sha256: Mapping[str, str]
    overflows: Mapping[str, int]

    @cached_property
    def sha256(self) -> dict[str, str]:
        """File name to hex digest; read from the files unless taken while they were written."""
        names = [path.name for path in self.files]
        with ThreadPoolExecutor(_workers(0)) as pool:
            return dict(zip(names, pool.map(self._digest, self.files), strict=True))

    def _digest(self, path: Path) -> str:
        return self.taken_sha256.get(path.name) or sha256_of(path)


def write_checkpoint(
    source: Path,
    output: Path,
    layout: Layout,
    *,
    model_type: str | None = None,
    progress: Progress | None = None,
    workers: int = 0,
    resume: bool = True,
    allow_pickle: bool = False,
    digests: bool = False,
) -> CheckpointReport:
    """Convert the Hugging Face folder `source` into the checkpoint folder `output`.

    Args:
        progress: called with bytes done and bytes in total.
        workers: threads; 0 takes one a processor, at most MOST_WORKERS.
        resume: go on with what an interrupted run of the same conversion left in `output`.
        allow_pickle: read PyTorch .bin files where there are no safetensors.
        digests: take the digests while writing; sooner than reading the files afterwards.

    Raises:
        UsageError, CheckpointError, UnsupportedModelError: before anything is written.
        ResourceError: disk full, no permission; what is written so far can be resumed.
    """
    started = time.monotonic()
    config = trtllm_config(read_config(source), layout, model_type)
    plan = ShardPlan(Source(source, allow_pickle=allow_pickle), config, layout)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.json").unlink(missing_ok=True)
        filled = fill(plan, output, Wishes(_workers(workers), resume, digests, progress or _silent))
        remove_leftovers(output / "config.json")
        write_json(output / "config.json", config)
    except OSError as error:
        raise write_error(output, error) from error
    files = (output / "config.json", *(output / file.name for file in plan.files))
    seconds = time.monotonic() - started
    return CheckpointReport(
        output, files, plan.total_bytes, filled.reused_bytes, seconds, filled.sha256, filled.overflows
    )


def _silent(done: int, total: int) -> None:
    """Progress of a caller that wants none."""


def _workers(asked: int) -> int:
    return asked or min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def _layout_of(config: dict[str, Any]) -> Layout:
    mapping = config["mapping"]
    return Layout(
        config["dtype"],
        mapping["tp_size"],
        mapping["pp_size"],
        mapping.get("moe_tp_size", 0),
        mapping.get("moe_ep_size", 0),
        config["use_parallel_embedding"],
        config["embedding_sharding_dim"],
    )


def restore_checkpoint(checkpoint: Path) -> Iterator[tuple[str, Array]]:
    """The Hugging Face tensors of a checkpoint folder, in stored form and the checkpoint's dtype.

    The inverse of `write_checkpoint`, from the same weight maps. A NormHead comes back normalised, a router
    in float32, and a tied head once, as the embedding.
    """
    config = read_config_object(checkpoint)
    layout, dims, weights = _layout_of(config), read_dims(config), weight_map(config)
    shapes = source_shapes(weights, dims)
    found: dict[str, list[_Found]] = {}
    for rank in layout.ranks():
        file = TensorFile(checkpoint / f"rank{rank.index}.safetensors")
        for target in rank_targets(weights, dims, rank, STORED_NAMES[config["dtype"]]):
            if not (dims.tied and target.name == HEAD):
                _collect(found, file, target)
    for name, parts in found.items():
        yield name, _joined(shapes[name], parts)


@dataclass(frozen=True)
class _Found:
    """A block of a source tensor inside a rank's tensor; `row` is its first row there."""

    file: TensorFile
    tensor: str
    row: int
    block: Block

    @property
    def values(self) -> Array:
        rows = self.file.view(self.tensor).reshape(-1, self.block.width)
        return rows[self.row : self.row + self.block.height]


def _collect(found: dict[str, list[_Found]], file: TensorFile, target: Target) -> None:
    row = 0
    for block in target.mosaic.blocks:
        if block.source != PADDING:
            found.setdefault(block.source, []).append(_Found(file, target.name, row, block))
        row += block.height


def _joined(shape: tuple[int, ...], parts: list[_Found]) -> Array:
    whole = np.empty((shape[0], shape[1] if len(shape) == 2 else 1), parts[0].values.dtype)
    for part in parts:
        whole[slice(*part.block.rows), slice(*part.block.columns)] = part.values
    return whole.reshape(shape)
