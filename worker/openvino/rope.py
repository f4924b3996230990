"""Rotary position embedding: angle tables and the rotation as graph nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from openvino import Node, Output, Type
from openvino import opset13 as ops

from worker.openvino.nodes import floats, integers
from worker.openvino.spec import Rotary

Frequencies = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RotaryNodes:
    """cos and sin of every position's angles, [batch, 1, length, rotary_dim]."""

    cos: Node
    sin: Node


def rotary_nodes(rotary: Rotary, position_ids: Node) -> RotaryNodes:
    """`position_ids` is [batch, length], int64."""
    frequencies, factor = rotary_table(rotary)
    positions = ops.unsqueeze(ops.convert(position_ids, Type.f32), integers(2))
    angles = ops.multiply(positions, floats(frequencies.reshape(1, 1, -1)))
    if rotary.interleaved:
        pair = ops.unsqueeze(angles, integers(-1))
        angles = ops.reshape(ops.concat([pair, pair], -1), integers(0, 0, rotary.dim), True)
    else:
        angles = ops.concat([angles, angles], -1)
    cos, sin = ops.unsqueeze(ops.cos(angles), integers(1)), ops.unsqueeze(ops.sin(angles), integers(1))
    if factor != 1.0:
        cos, sin = ops.multiply(cos, floats(factor)), ops.multiply(sin, floats(factor))
    return RotaryNodes(cos, sin)


def rotate(heads: Node, nodes: RotaryNodes, rotary: Rotary, head_size: int) -> Node:
    """Turn the first `rotary.dim` channels of [batch, heads, length, head_size]."""
    if rotary.dim == head_size:
        return _turn(heads, nodes, rotary)
    lengths = integers(rotary.dim, head_size - rotary.dim)
    turning, resting = ops.variadic_split(heads, _last_axis(), lengths).outputs()
    return ops.concat([_turn(turning, nodes, rotary), resting], -1)


def _turn(channels: Node | Output, nodes: RotaryNodes, rotary: Rotary) -> Node:
    quarter_turned = (
        _swap_pairs(channels, rotary.dim) if rotary.interleaved else _swap_halves(channels, rotary.dim)
    )
    return ops.add(ops.multiply(channels, nodes.cos), ops.multiply(quarter_turned, nodes.sin))


def _swap_halves(channels: Node | Output, dim: int) -> Node:
    """In the form that OpenVINO fuses into one node: axis 3, two lengths, a product with -1."""
    halves = ops.variadic_split(channels, ops.constant(np.int64(3)), integers(dim // 2, dim // 2))
    first, second = halves.outputs()
    return ops.concat([ops.multiply(second, floats(-1.0)), first], -1)


def _swap_pairs(channels: Node | Output, dim: int) -> Node:
    pairs = ops.reshape(channels, integers(0, 0, 0, dim // 2, 2), True)
    first, second = ops.split(pairs, _last_axis(), 2).outputs()
    turned = ops.concat([ops.multiply(second, floats(-1.0)), first], -1)
    return ops.reshape(turned, integers(0, 0, 0, dim), True)


def _last_axis() -> Node:
    return ops.constant(np.int64(-1))


def rotary_table(rotary: Rotary) -> tuple[Frequencies, float]:
    """Radians per position, [rotary_dim / 2], and the factor on cos and sin.

    dynamic changes its base only beyond `max_positions`, which are refused, so it is plain up to there;
    longrope has its short factors, which hold up to `original_positions`.
    """
    plain: Frequencies = rotary.base ** (-np.arange(0, rotary.dim, 2, dtype=np.float64) / rotary.dim)
    if rotary.kind == "linear":
        return plain / rotary.factor, 1.0
    if rotary.kind == "llama3":
        return _llama3(plain, rotary), 1.0
    if rotary.kind == "yarn":
        return _yarn(plain, rotary), _yarn_factor(rotary)
    if rotary.kind == "longrope":
        return plain / np.asarray(rotary.scaling["short_factor"]), _longrope_factor(rotary)
    return plain, 1.0


def _llama3(plain: Frequencies, rotary: Rotary) -> Frequencies:
    """Long waves are stretched by `factor`, short ones kept, those between blended."""
    low, high = float(rotary.scaling["low_freq_factor"]), float(rotary.scaling["high_freq_factor"])
    turns = float(rotary.original_positions or 0) * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: Frequencies = plain * (kept + (1.0 - kept) / rotary.factor)
    return blended


def _yarn(plain: Frequencies, rotary: Rotary) -> Frequencies:
    """Blend stretched and kept waves over the channels between beta_fast and beta_slow turns."""
    original = float(rotary.original_positions or 0)

    def channel(turns: float) -> float:
        return rotary.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))

    low = channel(float(rotary.scaling.get("beta_fast") or 32.0))
    high = channel(float(rotary.scaling.get("beta_slow") or 1.0))
    if rotary.scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.dim - 1)
    span = (high - low) or 0.001
    kept = 1.0 - np.clip((np.arange(rotary.dim // 2) - low) / span, 0.0, 1.0)
    return plain * (kept + (1.0 - kept) / rotary.factor)


def _yarn_factor(rotary: Rotary) -> float:
    scaling = rotary.scaling
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return _mscale(rotary.factor, scaling["mscale"]) / _mscale(rotary.factor, scaling["mscale_all_dim"])
    return _mscale(rotary.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def _longrope_factor(rotary: Rotary) -> float:
    if rotary.scaling.get("attention_factor") is not None:
        return float(rotary.scaling["attention_factor"])
    if rotary.factor <= 1.0:
        return 1.0
    return math.sqrt(1.0 + math.log(rotary.factor) / math.log(float(rotary.original_positions or 2)))
