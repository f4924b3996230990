"""Attention with a stateful key-value cache, in the form that OpenVINO GenAI turns into paged attention."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from openvino import Node, PartialShape, Type
from openvino import opset13 as ops

from worker.openvino.nodes import Layers, floats, integers
from worker.openvino.rope import RotaryNodes, rotary_nodes, rotate
from worker.openvino.spec import ModelSpec
from worker.openvino.weights import CheckpointWeights

# Stands for minus infinity in masks: finite in every compute precision.
MASKED = float(np.finfo(np.float16).min)
NATURAL_HEADS_TRANSPOSE = (0, 2, 1, 3)


@dataclass(frozen=True)
class Inputs:
    """The inputs: ids and positions [batch, length], mask [batch, past + length], beam_idx [batch]."""

    input_ids: Node
    attention_mask: Node
    position_ids: Node
    beam_idx: Node

    @staticmethod
    def create() -> Inputs:
        nodes = [
            ops.parameter([-1, -1], np.int64, name="input_ids"),
            ops.parameter([-1, -1], np.int64, name="attention_mask"),
            ops.parameter([-1, -1], np.int64, name="position_ids"),
            ops.parameter([-1], np.int32, name="beam_idx"),
        ]
        for node in nodes:
            node.output(0).set_names({node.get_friendly_name()})
        return Inputs(*nodes)

    def nodes(self) -> list[Node]:
        return [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]


@dataclass
class Attention:
    """Builds the attention of each layer; what all layers share is built once.

    With `window` a query sees itself and the `window` - 1 keys before it.
    """

    spec: ModelSpec
    layers: Layers
    weights: CheckpointWeights
    inputs: Inputs
    window: int | None = None
    sinks: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = self.spec
        shape = ops.shape_of(self.inputs.input_ids)
        self._batch = ops.gather(shape, integers(0), integers(0))
        self._length = ops.gather(shape, integers(1), integers(0))
        self._total = ops.gather(ops.shape_of(self.inputs.attention_mask), integers(1), integers(0))
        self._mask = self._build_mask()
        self._rotary: RotaryNodes | None = None
        if spec.rotary is not None:
            self._rotary = rotary_nodes(spec.rotary, self.inputs.position_ids)
        self._query_scale = None if spec.logn_length is None else self._logn_scale(spec.logn_length)

    def build(self, layer: int, hidden: Node) -> Node:
        """[batch, length, hidden] -> [batch, length, hidden]; adds the layer's cache to `sinks`."""
        query, key, value = self._query_key_value(layer, hidden)
        keys = self._expand(self._cached(layer, "key", key))
        values = self._expand(self._cached(layer, "value", value))
        mixed = ops.scaled_dot_product_attention(query, keys, values, self._mask, causal=False)
        width = self.spec.heads * self.spec.head_size
        merged = ops.transpose(mixed, integers(*NATURAL_HEADS_TRANSPOSE))
        merged = ops.reshape(merged, integers(0, 0, width), True)
        bias = self.weights.optional(layer, "attention.dense.bias")
        return self.layers.project(merged, self.weights.columns(layer, "attention.dense.weight"), bias)

    def _query_key_value(self, layer: int, hidden: Node) -> tuple[Node, Node, Node]:
        spec = self.spec
        matrices = self.weights.qkv(layer, "attention.qkv.weight")
        has_bias = self.weights.has(layer, "attention.qkv.bias")
        biases = self.weights.qkv(layer, "attention.qkv.bias") if has_bias else (None, None, None)
        flat = [
            self.layers.project(hidden, matrix, bias) for matrix, bias in zip(matrices, biases, strict=True)
        ]
        query = self._heads(layer, flat[0], spec.heads, "attention.q_layernorm.weight")
        key = self._heads(layer, flat[1], spec.kv_heads, "attention.k_layernorm.weight")
        value = self._heads(layer, flat[2], spec.kv_heads, None)
        if spec.rotary is not None and self._rotary is not None:
            query = rotate(query, self._rotary, spec.rotary, spec.head_size)
            key = rotate(key, self._rotary, spec.rotary, spec.head_size)
        if self._query_scale is not None:
            query = ops.multiply(query, self._query_scale)
        return query, key, value

    def _heads(self, layer: int, flat: Node, count: int, norm: str | None) -> Node:
        heads = ops.reshape(flat, integers(0, 0, count, self.spec.head_size), True)
        if norm is not None and self.weights.has(layer, norm):
            heads = self.layers.rms_norm(heads, self.weights.whole(layer, norm))
        return ops.transpose(heads, integers(*NATURAL_HEADS_TRANSPOSE))

    def _cached(self, layer: int, kind: str, current: Node) -> Node:
        """Past and current keys or values, [batch, kv_heads, past + length, head_size]."""
        spec = self.spec
        name = f"past_key_values.{layer}.{kind}present.{layer}.{kind}"
        counts = [self._batch, integers(spec.kv_heads), integers(0), integers(spec.head_size)]
        empty = ops.broadcast(floats(0.0), ops.concat(counts, 0))
        past = ops.read_value(empty, name, Type.f32, PartialShape([-1, spec.kv_heads, -1, spec.head_size]))
        past = ops.gather(past, self.inputs.beam_idx, integers(0))
        cached = ops.concat([past, current], 2)
        self.sinks.append(ops.assign(cached, name))
        return cached

    def _expand(self, cached: Node) -> Node:
        """Repeat each key-value head for the query heads that share it."""
        spec = self.spec
        repeats = spec.heads // spec.kv_heads
        if repeats == 1:
            return cached
        counts = [self._batch, integers(spec.kv_heads), integers(repeats), self._total]
        shape = ops.concat([*counts, integers(spec.head_size)], 0)
        repeated = ops.broadcast(ops.unsqueeze(cached, integers(2)), shape, "BIDIRECTIONAL")
        return ops.reshape(repeated, integers(0, spec.heads, -1, spec.head_size), True)

    def _build_mask(self) -> Node:
        """Zero or the ALiBi bias where a query may look, else minus infinity: [batch, heads, length, total].

        Paged attention keeps causality itself and takes ALiBi slopes and the window from the shape of
        this subgraph, so the chains of nodes must stay as they are.
        """
        rows = ops.add(_range(self._length), ops.subtract(self._total, self._length))
        rows = ops.unsqueeze(rows, integers(0, 1, 3))
        columns = ops.unsqueeze(_range(self._total), integers(0, 1, 2))
        keep = ops.less_equal(columns, rows)
        if self.spec.rotary is None:
            hidden = ops.logical_not(ops.logical_and(keep, self._present()))
            return ops.select(hidden, floats(MASKED), self._alibi_bias())
        if self.window is None:
            return self._masked(ops.logical_and(keep, self._present()), floats(0.0))
        return self._window_mask(rows, columns, keep)

    def _present(self) -> Node:
        return ops.unsqueeze(ops.not_equal(self.inputs.attention_mask, integers(0)), integers(1, 2))

    def _masked(self, keep: Node, visible: Node) -> Node:
        return ops.select(keep, visible, floats(MASKED))

    def _window_mask(self, rows: Node, columns: Node, keep: Node) -> Node:
        """Greater, four BitwiseAnds, Broadcast, Select, Slice: paged attention reads the window from it."""
        assert self.window is not None
        oldest = ops.add(rows, ops.constant(np.int64(-self.window)))
        true = ops.constant(np.array(True))
        near = ops.bitwise_and(true, ops.greater(columns, oldest))
        near = ops.bitwise_and(true, ops.bitwise_and(near, keep))
        near = ops.bitwise_and(near, self._present())
        shape = ops.concat([self._batch, integers(1), self._length, self._total], 0)
        masked = self._masked(ops.broadcast(near, shape, "BIDIRECTIONAL"), floats(0.0))
        return ops.slice(masked, integers(0), self._total, integers(1), integers(3))

    def _alibi_bias(self) -> Node:
        """Slope times key position; a shift that is the same for all keys of a query changes no softmax."""
        slopes = floats(alibi_slopes(self.spec.heads).reshape(-1, 1, 1))
        columns = ops.unsqueeze(ops.convert(_range(self._total), Type.f32), integers(0, 1))
        bias = ops.multiply(slopes, columns)
        bias = ops.reshape(bias, integers(self.spec.heads, 1, -1), False)
        return ops.reshape(bias, integers(1, self.spec.heads, 1, -1), False)

    def _logn_scale(self, trained_length: int) -> Node:
        """Qwen1: queries beyond the trained length grow with the logarithm of their position."""
        count = ops.add(ops.convert(self.inputs.position_ids, Type.f32), floats(1.0))
        scale = ops.divide(ops.log(count), floats(math.log(trained_length)))
        return ops.unsqueeze(ops.maximum(scale, floats(1.0)), integers(1, 3))


def _range(count: Node) -> Node:
    return ops.range(_scalar(integers(0)), _scalar(count), _scalar(integers(1)), "i64")


def _scalar(single: Node) -> Node:
    return ops.squeeze(single, integers(0))


def alibi_slopes(heads: int) -> npt.NDArray[np.float64]:
    """The slope of each head, as the ALiBi paper gives it, also where `heads` is not a power of two."""
    nearest = 2 ** math.floor(math.log2(heads))
    slopes = _geometric(nearest)
    return np.concatenate([slopes, _geometric(2 * nearest)[0::2][: heads - nearest]])


def _geometric(count: int) -> npt.NDArray[np.float64]:
    return 2.0 ** (-8.0 * np.arange(1, count + 1) / count)
