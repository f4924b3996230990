"""Where each part of a rank's tensor comes from: the combinators of the weight maps.

A tensor of a rank is a *mosaic*: blocks laid under each other, each a rectangle of a source tensor or
rows of zeros. Conversion copies blocks one way, restoring copies them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from builder.families.dims import Dims
from builder.families.layout import Rank

PADDING = ""


@dataclass(frozen=True)
class Block:
    """Rows and columns [begin, end) of a source tensor, or zeros (PADDING). Vectors have one column."""

    source: str
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def height(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]


@dataclass(frozen=True)
class Mosaic:
    """One tensor of one rank: its shape and its blocks from top to bottom."""

    shape: tuple[int, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Entry:
    """One line of a weight map.

    Args:
        target: TensorRT-LLM name; {i} is the layer inside the stage.
        sources: Hugging Face names; {g} is the global layer, {e} the expert.
        rows, columns: `Dims` attributes that give each source's shape; a vector has no columns. When the
            sources differ in rows, `rows` names one attribute each, joined by blanks.
        split: the combinator.
        when: `Dims` attribute that switches the line on.
        dtype: fixed stored form, where it does not follow the checkpoint's.
        normalised: rows are divided by their L2 norm (NormHead) where `Dims.normalised_head`.
    """

    target: str
    sources: tuple[str, ...]
    rows: str
    columns: str
    split: Callable[[Entry, Dims, Rank, int], Mosaic]
    when: str = "one"
    dtype: str = ""
    normalised: bool = False

    def source_shapes(self, dims: Dims) -> list[tuple[int, int]]:
        """Rows and columns of each source (of each expert's)."""
        names = self.rows.split()
        heights = [getattr(dims, name) for name in names] * (len(self.sources) // len(names))
        width = getattr(dims, self.columns) if self.columns else 1
        return [(height, width) for height in heights]


def share(total: int, count: int, index: int) -> tuple[int, int]:
    """[begin, end) of part `index` of `count` equal parts."""
    each = total // count
    return index * each, (index + 1) * each


def joined(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Blocks that continue each other in the source become one."""
    result: list[Block] = []
    for block in blocks:
        last = result[-1] if result else None
        if last and (last.source, last.columns, last.rows[1]) == (block.source, block.columns, block.rows[0]):
            result[-1] = Block(block.source, (last.rows[0], block.rows[1]), block.columns)
        elif block.height:
            result.append(block)
    return tuple(result)


def _mosaic(entry: Entry, blocks: Iterable[Block], experts: int = 0) -> Mosaic:
    parts = joined(blocks)
    height, width = sum(block.height for block in parts), parts[0].width
    if experts:
        return Mosaic((experts, height // experts, width), parts)
    return Mosaic((height, width) if entry.columns else (height,), parts)


def _names(entry: Entry, layer: int) -> list[str]:
    return [name.replace("{g}", str(layer)) for name in entry.sources]


def whole(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """Every rank has all of it."""
    height, width = entry.source_shapes(dims)[0]
    return _mosaic(entry, [Block(_names(entry, layer)[0], (0, height), (0, width))])


def rows(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """Column parallel: this rank's rows of each source, one source under the other."""
    parts = []
    for name, (height, width) in zip(_names(entry, layer), entry.source_shapes(dims), strict=True):
        parts.append(Block(name, share(height, rank.tp_size, rank.tp_rank), (0, width)))
    return _mosaic(entry, parts)


def columns(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """Row parallel: all rows, this rank's columns."""
    height, width = entry.source_shapes(dims)[0]
    part = share(width, rank.tp_size, rank.tp_rank)
    return _mosaic(entry, [Block(_names(entry, layer)[0], (0, height), part)])


def vocabulary(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """Rows padded with zeros at the end to a multiple of tp_size, then this rank's rows."""
    height, width = entry.source_shapes(dims)[0]
    each = -(-height // rank.tp_size)
    begin = min(rank.tp_rank * each, height)
    end = min(begin + each, height)
    real = Block(_names(entry, layer)[0], (begin, end), (0, width))
    return _mosaic(entry, [real, Block(PADDING, (0, each - (end - begin)), (0, width))])


def embedding(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """Whole, or with use_parallel_embedding cut by vocabulary or by hidden size."""
    if not dims.use_parallel_embedding:
        return whole(entry, dims, rank, layer)
    cut = columns if dims.embedding_sharding_dim else vocabulary
    return cut(entry, dims, rank, layer)


def swapped_halves(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """ChatGLM keeps [gate; up] in one tensor; each rank gets its rows of up, then of gate."""
    height, width = entry.source_shapes(dims)[0]
    half = height // 2
    begin, end = share(half, rank.tp_size, rank.tp_rank)
    name = _names(entry, layer)[0]
    ranges = [(half + begin, half + end), (begin, end)]
    return _mosaic(entry, [Block(name, part, (0, width)) for part in ranges])


def _heads_of_rank(dims: Dims, rank: Rank) -> tuple[range, range]:
    """Query heads and KV heads of a rank; ranks share a KV head where there are fewer heads than ranks."""
    queries = range(*share(dims.heads, rank.tp_size, rank.tp_rank))
    if dims.kv_heads >= rank.tp_size:
        return queries, range(*share(dims.kv_heads, rank.tp_size, rank.tp_rank))
    shared = rank.tp_rank * dims.kv_heads // rank.tp_size
    return queries, range(shared, shared + 1)


def _qkv(entry: Entry, dims: Dims, rank: Rank, place: Callable[[int, int], tuple[str, int]]) -> Mosaic:
    """This rank's heads of Q, K and V. `place`: (0 Q, 1 K or 2 V; head) to source and first row."""
    width = entry.source_shapes(dims)[0][1]
    queries, keys = _heads_of_rank(dims, rank)
    blocks = []
    for kind, heads in enumerate((queries, keys, keys)):
        for head in heads:
            source, first = place(kind, head)
            blocks.append(Block(source, (first, first + dims.head_size), (0, width)))
    return _mosaic(entry, blocks)


def qkv_separate(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """Three sources: Q, K and V."""
    names = _names(entry, layer)
    return _qkv(entry, dims, rank, lambda kind, head: (names[kind], head * dims.head_size))


def qkv_stacked(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """One source with all rows of Q, then of K, then of V (Qwen 1, Baichuan, ChatGLM)."""
    name = _names(entry, layer)[0]
    starts = (0, dims.query, dims.query + dims.key)
    return _qkv(entry, dims, rank, lambda kind, head: (name, starts[kind] + head * dims.head_size))


def qkv_grouped(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """One source; each KV head's queries, its key and its value stand together (InternLM2)."""
    name = _names(entry, layer)[0]
    queries = dims.heads // dims.kv_heads

    def place(kind: int, head: int) -> tuple[str, int]:
        group, within = divmod(head, queries) if kind == 0 else (head, queries + kind - 1)
        return name, (group * (queries + 2) + within) * dims.head_size

    return _qkv(entry, dims, rank, place)


def _experts_of_rank(dims: Dims, rank: Rank) -> range:
    return range(*share(dims.experts, rank.moe_ep_size, rank.moe_ep_rank))


def expert_rows(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """Stacked experts, each with this rank's rows of its sources (up, then gate)."""
    height, width = entry.source_shapes(dims)[0]
    part = share(height, rank.moe_tp_size, rank.moe_tp_rank)
    experts = _experts_of_rank(dims, rank)
    blocks = [
        Block(name.replace("{e}", str(expert)), part, (0, width))
        for expert in experts
        for name in _names(entry, layer)
    ]
    return _mosaic(entry, blocks, len(experts))


def expert_columns(entry: Entry, dims: Dims, rank: Rank, layer: int) -> Mosaic:
    """Stacked experts, each with this rank's columns (down)."""
    height, width = entry.source_shapes(dims)[0]
    part = share(width, rank.moe_tp_size, rank.moe_tp_rank)
    experts = _experts_of_rank(dims, rank)
    name = _names(entry, layer)[0]
    blocks = [Block(name.replace("{e}", str(expert)), (0, height), part) for expert in experts]
    return _mosaic(entry, blocks, len(experts))
