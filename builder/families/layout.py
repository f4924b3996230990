"""How a checkpoint is cut: data type, tensor, pipeline and expert parallel sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import UsageError

STORED_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class Rank:
    """One rank file: its place in the tensor, pipeline and expert parallel groups."""

    index: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    moe_tp_rank: int
    moe_tp_size: int
    moe_ep_rank: int
    moe_ep_size: int

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    def layers(self, count: int) -> range:
        """Global layer numbers of this stage; the first stages take one more when `count` does not divide."""
        each, rest = divmod(count, self.pp_size)
        start = self.pp_rank * each + min(self.pp_rank, rest)
        return range(start, start + each + (self.pp_rank < rest))


@dataclass(frozen=True)
class Layout:
    """What the user chooses about the checkpoint; the defaults are those of upstream's converters.

    Args:
        dtype: float16, bfloat16, float32, or auto: the model's own, float16 for a float32 model.
        moe_tp_size, moe_ep_size: 0 means the rest of tp_size after the other one.
        embedding_sharding_dim: with use_parallel_embedding, 0 cuts the vocabulary, 1 the hidden size.

    Raises:
        UsageError: sizes that no model can have.
    """

    dtype: str = "auto"
    tp_size: int = 1
    pp_size: int = 1
    moe_tp_size: int = 0
    moe_ep_size: int = 0
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in (*STORED_NAMES, "auto"):
            allowed = ", ".join((*STORED_NAMES, "auto"))
            raise UsageError(f"Unknown dtype {self.dtype!r}.", hint=f"Use one of: {allowed}.", code="dtype")
        if self.tp_size < 1 or self.pp_size < 1:
            sizes = f"tp_size {self.tp_size}, pp_size {self.pp_size}"
            raise UsageError(
                f"Parallel sizes start at 1, got {sizes}.", hint="Use 1, 2, 4 or 8.", code="tp_size"
            )
        if self.embedding_sharding_dim not in (0, 1):
            raise UsageError(
                f"embedding_sharding_dim is {self.embedding_sharding_dim}.",
                hint="Use 0 to cut the vocabulary or 1 to cut the hidden size.",
                code="embedding_sharding_dim",
            )
        moe_tp, moe_ep = self.moe_sizes
        if min(self.moe_tp_size, self.moe_ep_size) < 0 or moe_tp * moe_ep != self.tp_size:
            raise UsageError(
                f"moe_tp_size {moe_tp} times moe_ep_size {moe_ep} is not tp_size {self.tp_size}.",
                why="Experts are shared out among the same ranks as the other tensors.",
                hint=f"Choose two sizes whose product is {self.tp_size}.",
                code="moe_sizes",
            )

    @property
    def moe_sizes(self) -> tuple[int, int]:
        """Tensor and expert parallel size of the experts."""
        if self.moe_tp_size:
            return self.moe_tp_size, self.moe_ep_size or max(self.tp_size // self.moe_tp_size, 1)
        if self.moe_ep_size:
            return max(self.tp_size // self.moe_ep_size, 1), self.moe_ep_size
        return self.tp_size, 1

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    def ranks(self) -> Iterator[Rank]:
        """All rank files in order; tensor parallel rank varies fastest."""
        moe_tp, moe_ep = self.moe_sizes
        for index in range(self.world_size):
            pp_rank, tp_rank = divmod(index, self.tp_size)
            moe_tp_rank, moe_ep_rank = divmod(tp_rank, moe_ep)
            yield Rank(
                index,
                tp_rank,
                self.tp_size,
                pp_rank,
                self.pp_size,
                moe_tp_rank,
                moe_tp,
                moe_ep_rank,
                moe_ep,
            )
