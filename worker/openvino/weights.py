"""The weights of a TRT-LLM checkpoint, all tensor and pipeline ranks joined.

What one rank holds whole is a view of the mapped file; what is cut over ranks is joined in memory, in
the dtype of the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import CheckpointError
from common.tensors import Array, TensorFile, cast
from worker.openvino.spec import ModelSpec

_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Weight:
    """A tensor in its stored form; `dtype` is the safetensors name (BF16 is stored as uint16)."""

    values: Array
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def floats(self) -> Array:
        return cast(self.values, self.dtype, "F32")

    def __getitem__(self, part: int | slice | tuple[slice, ...]) -> Weight:
        return Weight(self.values[part], self.dtype)


def join(parts: Sequence[Weight], axis: int) -> Weight:
    if len(parts) == 1:
        return parts[0]
    return Weight(np.concatenate([part.values for part in parts], axis), parts[0].dtype)


class CheckpointWeights:
    """Reads `checkpoint`/rank*.safetensors; layers are numbered over the whole model, from 0.

    Raises:
        CheckpointError: a rank file or tensor is missing, or the layers do not add up.
    """

    def __init__(self, checkpoint: Path, spec: ModelSpec) -> None:
        self._spec = spec
        ranks = spec.ranks
        files = [TensorFile(checkpoint / f"rank{rank}.safetensors") for rank in range(ranks.tp * ranks.pp)]
        self._stages = [files[start : start + ranks.tp] for start in range(0, len(files), ranks.tp)]
        self._places = [
            (stage, local) for stage in range(ranks.pp) for local in _layer_numbers(self._stages[stage][0])
        ]
        if len(self._places) != spec.layers:
            raise CheckpointError(
                f"{checkpoint} holds {len(self._places)} layers.",
                why=f"Its config.json says {spec.layers} layers in {ranks.pp} pipeline stages.",
                hint="Make the checkpoint again with `ew convert-trt --force`.",
            )

    def has(self, layer: int, name: str) -> bool:
        files, full_name = self._locate(layer, name)
        return full_name in files[0]

    def whole(self, layer: int, name: str) -> Weight:
        """A tensor that every rank holds entire."""
        files, full_name = self._locate(layer, name)
        return _read(files[0], full_name)

    def rows(self, layer: int, name: str) -> Weight:
        """A column-parallel tensor: the ranks hold consecutive rows (dimension 0)."""
        return self._fitting(layer, name, join(self._parts(layer, name), 0), -1)

    def columns(self, layer: int, name: str) -> Weight:
        """A row-parallel tensor: the ranks hold consecutive columns (the last dimension)."""
        return self._fitting(layer, name, join(self._parts(layer, name), -1), 0)

    def optional(self, layer: int, name: str) -> Weight | None:
        return self.whole(layer, name) if self.has(layer, name) else None

    def optional_rows(self, layer: int, name: str) -> Weight | None:
        return self.rows(layer, name) if self.has(layer, name) else None

    def row_blocks(self, layer: int, name: str, count: int) -> list[Weight]:
        """A tensor whose rows are `count` equal blocks in every rank, e.g. the halves of a fused MLP."""
        return _join_blocks(self._parts(layer, name), count, 0)

    def qkv(self, layer: int, name: str) -> tuple[Weight, Weight, Weight]:
        """Split attention.qkv into query, key and value; repeated key and value heads count once."""
        spec = self._spec
        tp = spec.ranks.tp
        query_rows = spec.heads // tp * spec.head_size
        repeats = max(1, tp // spec.kv_heads)
        kv_rows = max(1, spec.kv_heads // tp) * spec.head_size
        parts = self._parts(layer, name)
        for part in parts:
            self._expect(layer, name, part.shape[0] == query_rows + 2 * kv_rows, part)
        key_start, value_start = query_rows, query_rows + kv_rows
        query = join([part[:key_start] for part in parts], 0)
        distinct = parts[::repeats]
        key = join([part[key_start:value_start] for part in distinct], 0)
        value = join([part[value_start : value_start + kv_rows] for part in distinct], 0)
        return query, key, value

    def experts(self, layer: int, name: str, blocks: int, axis: int) -> list[Weight]:
        """Expert tensors [expert, rows, columns]: experts over the ep ranks, `axis` over the expert tp ranks.

        `axis` holds `blocks` equal blocks in every rank; each comes back joined.
        """
        parts = self._parts(layer, name)
        for part in parts:
            self._expect(layer, name, len(part.shape) == 3, part)
        expert_tp = self._spec.ranks.expert_tp
        ep = len(parts) // expert_tp
        # Ranks of one tensor-parallel group vary ep fastest.
        groups = [_join_blocks(parts[rank::ep], blocks, axis) for rank in range(ep)]
        return [join([group[block] for group in groups], 0) for block in range(blocks)]

    def embedding(self) -> Weight:
        """The token embedding [vocab_size, hidden_size]."""
        parts = [_read(file, "transformer.vocab_embedding.weight") for file in self._stages[0]]
        axis = self._spec.ranks.embedding_dim
        whole = parts[0] if axis is None else join(parts, axis)
        return whole[: self._spec.vocab_size]

    def final_norm(self) -> Weight:
        return _read(self._stages[-1][0], "transformer.ln_f.weight")

    def head(self) -> Weight | None:
        """The output projection [vocab_size, hidden_size], unpadded; None where it is the embedding."""
        files = self._stages[-1]
        if self._spec.tied_embeddings or "lm_head.weight" not in files[0]:
            return None
        return join([_read(file, "lm_head.weight") for file in files], 0)[: self._spec.vocab_size]

    def _fitting(self, layer: int, name: str, weight: Weight, hidden_axis: int) -> Weight:
        is_bias = len(weight.shape) == 1
        self._expect(layer, name, is_bias or weight.shape[hidden_axis] == self._spec.hidden_size, weight)
        return weight

    def _expect(self, layer: int, name: str, fits: bool, weight: Weight) -> None:
        if not fits:
            files, full_name = self._locate(layer, name)
            raise CheckpointError(
                f"{files[0].path} does not belong to its config.json.",
                why=f"{full_name} has the shape {list(weight.shape)}; config.json asks for another.",
                hint="Make the checkpoint again with `ew convert-trt --force`.",
            )

    def _locate(self, layer: int, name: str) -> tuple[list[TensorFile], str]:
        stage, local = self._places[layer]
        return self._stages[stage], f"transformer.layers.{local}.{name}"

    def _parts(self, layer: int, name: str) -> list[Weight]:
        files, full_name = self._locate(layer, name)
        return [_read(file, full_name) for file in files]


def _layer_numbers(file: TensorFile) -> list[int]:
    return sorted({int(match[1]) for match in map(_LAYER.match, file) if match})


def _read(file: TensorFile, name: str) -> Weight:
    if name not in file:
        raise CheckpointError(
            f"{file.path} has no tensor {name}.",
            why="The rank file does not belong to its config.json.",
            hint="Make the checkpoint again with `ew convert-trt --force`.",
        )
    return Weight(file.view(name), file.tensors[name].dtype)


def _join_blocks(parts: Sequence[Weight], count: int, axis: int) -> list[Weight]:
    size = parts[0].shape[axis] // count
    before = (slice(None),) * axis
    blocks = [(*before, slice(start, start + size)) for start in range(0, count * size, size)]
    return [join([part[block] for part in parts], axis) for block in blocks]
