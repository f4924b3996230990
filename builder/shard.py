"""The plan of a conversion: which bytes of which source tensor go where in which rank file.

Everything is known, and checked against the source, before a byte is written.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.families import Dims, Layout, Rank, read_dims, weight_map
from builder.families.checks import check_layout
from builder.families.layout import STORED_NAMES
from builder.families.maps import WeightMap
from builder.families.placement import PADDING, Block, Entry, Mosaic
from builder.sources import Source
from common.casts import STORED
from common.errors import CheckpointError, UnsupportedModelError
from common.tensors import TensorSpec, encode_header

STEP_BYTES = 8 * 2**20  # of the source; the unit of work, of progress and of the journal
CONVERTIBLE = ("F16", "BF16", "F32", "F64")
HEAD, EMBEDDING = "lm_head.weight", "transformer.vocab_embedding.weight"


@dataclass(frozen=True)
class Target:
    """One tensor of one rank file."""

    name: str
    entry: Entry
    mosaic: Mosaic
    dtype: str

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.mosaic.shape)


@dataclass(frozen=True)
class Move:
    """A rectangle of a source tensor for a rank file, where it fills bytes [offset, offset + nbytes)."""

    rank: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    offset: int
    nbytes: int

    @property
    def place(self) -> tuple[int, int]:
        return self.offset, self.offset + self.nbytes


@dataclass(frozen=True)
class Step:
    """Rows [begin, end) of one source tensor, and all that becomes of them."""

    source: str
    rows: tuple[int, int]
    dtype: str
    normalised: bool
    moves: tuple[Move, ...]
    nbytes: int


@dataclass(frozen=True)
class RankFile:
    """Header and size of one rank file."""

    name: str
    header: bytes
    targets: tuple[Target, ...]
    size: int


def rank_targets(weights: WeightMap, dims: Dims, rank: Rank, dtype: str) -> Iterator[Target]:
    """All tensors of a rank, in the order of the weight map."""

    def target(entry: Entry, local: int, layer: int) -> Iterator[Target]:
        if getattr(dims, entry.when):
            name = entry.target.replace("{i}", str(local))
            yield Target(name, entry, entry.split(entry, dims, rank, layer), entry.dtype or dtype)

    if rank.is_first_stage:
        for entry in weights.first:
            yield from target(entry, 0, 0)
    for local, layer in enumerate(rank.layers(dims.layers)):
        for entry in weights.layer:
            yield from target(entry, local, layer)
    if rank.is_last_stage:
        for entry in weights.last:
            yield from target(entry, 0, 0)


def source_shapes(weights: WeightMap, dims: Dims) -> dict[str, tuple[int, ...]]:
    """Shape of every source tensor that the map reads."""
    shapes: dict[str, tuple[int, ...]] = {}
    entries = [(entry, 1) for entry in (*weights.first, *weights.last)]
    entries += [(entry, dims.layers) for entry in weights.layer]
    for entry, layers in entries:
        if not getattr(dims, entry.when):
            continue
        for template, (height, width) in zip(entry.sources, entry.source_shapes(dims), strict=True):
            shape = (height, width) if entry.columns else (height,)
            for layer in range(layers):
                for expert in range(dims.experts if "{e}" in template else 1):
                    shapes[template.replace("{g}", str(layer)).replace("{e}", str(expert))] = shape
    return shapes


def _head_and_embedding(weights: WeightMap) -> tuple[str, str]:
    head = next(entry for entry in weights.last if entry.target == HEAD)
    embedding = next(entry for entry in weights.first if entry.target == EMBEDDING)
    return head.sources[0], embedding.sources[0]


def _aliases(source: Source, weights: WeightMap, dims: Dims) -> dict[str, str]:
    """Tied embeddings: the head is read from the embedding, or the other way round where only it is there."""
    head, embedding = _head_and_embedding(weights)
    if (dims.tied or head not in source) and embedding in source:
        return {head: embedding}
    if embedding not in source and head in source:
        return {embedding: head}
    return {}


def _check_source(source: Source, shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str]) -> None:
    needed = {aliases.get(name, name): shape for name, shape in shapes.items()}
    missing = [name for name in needed if name not in source]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(needed)} weights are missing, first {missing[0]!r}.",
            why="config.json promises them; a shard may not have been downloaded.",
            hint="Compare the folder with the published list of files.",
            code="weights_missing",
        )
    for name, shape in needed.items():
        info = source.info(name)
        if info.shape != shape:
            raise CheckpointError(
                f"{name!r} has shape {list(info.shape)}; config.json makes it {list(shape)}.",
                hint="config.json and weights must be of one and the same revision.",
                code="shape_mismatch",
            )
        if info.dtype not in CONVERTIBLE:
            raise UnsupportedModelError(
                f"{name!r} is stored as {info.dtype}.",
                why="Only float16, bfloat16 and float32 weights can be converted on a CPU.",
                hint="Use the unquantized model, or --runtime pytorch.",
                code="prequantized",
            )


def _check_surplus(
    source: Source,
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    ignored: tuple[str, ...],
) -> None:
    """A weight that no line reads would be lost without a word, and the model would answer nonsense."""
    surplus = [
        name
        for name in source
        if name not in shapes
        and name not in aliases
        and not any(fnmatch.fnmatch(name, each) for each in ignored)
    ]
    if surplus:
        raise UnsupportedModelError(
            f"{len(surplus)} weights have no place in the TensorRT-LLM model, first {surplus[0]!r}.",
            why="Leaving them out would change what the model computes.",
            hint="Serve this model with the PyTorch runtime: --runtime pytorch",
            code="weights_surplus",
        )


class ShardPlan:
    """All rank files of a conversion and the steps that fill them.

    Args:
        source: the Hugging Face weights.
        config: config.json of the checkpoint to write.
        layout: how it is cut.

    Raises:
        CheckpointError: the layout does not fit the sizes, or the weights do not fit the config.
    """

    def __init__(self, source: Source, config: Mapping[str, Any], layout: Layout) -> None:
        self.source, self.config = source, config
        dims, weights = read_dims(config), weight_map(config)
        check_layout(dims, layout)
        shapes = source_shapes(weights, dims)
        self._aliases = _aliases(source, weights, dims)
        _check_source(source, shapes, self._aliases)
        _check_surplus(source, shapes, self._aliases, weights.ignored)
        self._normalised = dims.normalised_head
        dtype = STORED_NAMES[config["dtype"]]
        self.files = [self._rank_file(weights, dims, rank, dtype) for rank in layout.ranks()]
        self.steps = list(self._steps())
        self.total_bytes = sum(file.size for file in self.files)

    def _real(self, block: Block) -> str:
        return self._aliases.get(block.source, block.source)

    def _place(self, target: Target) -> tuple[int, int]:
        """Where a target's first source lies: files in this order are written front to back, padding last."""
        sources = (block for block in target.mosaic.blocks if block.source != PADDING)
        first = next(sources, None)
        return self.source.place(self._real(first)) if first else (len(self.source.files), 0)

    def _rank_file(self, weights: WeightMap, dims: Dims, rank: Rank, dtype: str) -> RankFile:
        targets = sorted(rank_targets(weights, dims, rank, dtype), key=self._place)
        header = encode_header({target.name: target.spec for target in targets})
        size = len(header) + sum(target.spec.nbytes for target in targets)
        return RankFile(f"rank{rank.index}.safetensors", header, tuple(targets), size)

    def _moves(self) -> dict[tuple[str, str, bool], list[Move]]:
        """What becomes of each source tensor."""
        moves = defaultdict(list)
        for rank, file in enumerate(self.files):
            offset = len(file.header)
            for target in file.targets:
                item = STORED[target.dtype].itemsize
                normalised = target.entry.normalised and self._normalised
                for block in target.mosaic.blocks:
                    size = block.height * block.width * item
                    if block.source != PADDING:
                        move = Move(rank, block.rows, block.columns, offset, size)
                        moves[self._real(block), target.dtype, normalised].append(move)
                    offset += size
        return moves

    def _steps(self) -> Iterator[Step]:
        moves = self._moves()
        for key in sorted(moves, key=lambda key: (self.source.place(key[0]), key[1:])):
            yield from self._steps_of(*key, moves[key])

    def _steps_of(self, name: str, dtype: str, normalised: bool, moves: list[Move]) -> Iterator[Step]:
        info = self.source.info(name)
        height = max(1, STEP_BYTES * info.shape[0] // max(info.nbytes, 1))
        for begin in range(0, info.shape[0], height):
            end = min(begin + height, info.shape[0])
            parts = tuple(part for move in moves for part in cut(move, begin, end))
            if parts:
                size = sum(part.nbytes for part in parts)
                yield Step(name, (begin, end), dtype, normalised, parts, size)

    @property
    def digest(self) -> str:
        """Equal for equal inputs: config, source files (name, size, time) and the plan's own form."""
        facts = {
            "config": self.config,
            "source": self.source.fingerprint(),
            "headers": [hashlib.sha256(file.header).hexdigest() for file in self.files],
            "step": STEP_BYTES,
            "steps": len(self.steps),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def cut(move: Move, begin: int, end: int) -> Iterator[Move]:
    """The part of a move whose source rows are in [begin, end)."""
    if begin <= move.rows[0] and move.rows[1] <= end:
        yield move
        return
    first, last = max(move.rows[0], begin), min(move.rows[1], end)
    if first < last:
        row = move.nbytes // (move.rows[1] - move.rows[0])
        offset = move.offset + (first - move.rows[0]) * row
        yield Move(move.rank, (first, last), move.columns, offset, (last - first) * row)
