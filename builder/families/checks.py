"""Refuses what cannot be split without wrong weights, from sizes alone."""

from __future__ import annotations

from collections.abc import Iterator

from builder.families.dims import Dims
from builder.families.layout import Layout
from common.errors import CheckpointError


def _possible_tp_sizes(dims: Dims) -> str:
    fitting = [str(tp) for tp in range(1, dims.heads + 1) if not list(_tensor_problems(dims, tp))]
    return ", ".join(fitting)


def _tensor_problems(dims: Dims, tp: int) -> Iterator[str]:
    if dims.heads % tp:
        yield f"{dims.heads} attention heads are not divisible by tp_size {tp}."
    if dims.kv_heads % tp and tp % dims.kv_heads:
        yield f"{dims.kv_heads} KV heads and tp_size {tp}: neither divides the other."
    if dims.intermediate % tp and not dims.experts:
        yield f"intermediate_size {dims.intermediate} is not divisible by tp_size {tp}."
    if dims.shared_intermediate % tp:
        yield f"shared_expert_intermediate_size {dims.shared_intermediate} is not divisible by tp_size {tp}."
    if dims.use_parallel_embedding and dims.embedding_sharding_dim == 1 and dims.hidden % tp:
        yield f"hidden_size {dims.hidden} is not divisible by tp_size {tp} (embedding_sharding_dim 1)."


def _other_problems(dims: Dims, layout: Layout) -> Iterator[str]:
    if dims.heads % dims.kv_heads:
        yield f"{dims.heads} attention heads are not a multiple of {dims.kv_heads} KV heads."
    if layout.pp_size > dims.layers:
        yield f"pp_size {layout.pp_size} is more than the {dims.layers} layers."
    moe_tp, moe_ep = layout.moe_sizes
    if dims.experts % moe_ep:
        yield f"{dims.experts} experts are not divisible by moe_ep_size {moe_ep}."
    if dims.expert_intermediate % moe_tp:
        size = dims.expert_intermediate
        yield f"The experts' intermediate size {size} is not divisible by moe_tp_size {moe_tp}."


def layout_problems(dims: Dims, layout: Layout) -> list[str]:
    """Every reason why `layout` would give wrong weights; empty when there is none."""
    return [*_tensor_problems(dims, layout.tp_size), *_other_problems(dims, layout)]


def check_layout(dims: Dims, layout: Layout) -> None:
    """Raise CheckpointError with the sizes when the model cannot be split so."""
    problems = layout_problems(dims, layout)
    if problems:
        raise CheckpointError(
            f"The model cannot be split with tp_size {layout.tp_size}, pp_size {layout.pp_size}.",
            why=" ".join(problems),
            hint=f"tp_size can be: {_possible_tp_sizes(dims)}; pp_size up to {dims.layers}.",
            code="layout",
        )
