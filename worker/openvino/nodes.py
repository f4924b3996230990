"""Graph nodes that every layer uses: constants, weights at the wanted precision, projections, RMS norm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from openvino import Node, Shape, Tensor, Type
from openvino import op as base_ops
from openvino import opset13 as ops

from common.tensors import Array
from worker.openvino.weights import Weight

_TYPES = {"BF16": Type.bf16, "F16": Type.f16, "F32": Type.f32}
INT8_LEVELS = 127


def floats(values: npt.ArrayLike) -> Node:
    return ops.constant(np.asarray(values, dtype=np.float32))


def integers(*values: int) -> Node:
    return ops.constant(np.array(values, dtype=np.int64))


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix in the graph: `levels` in its stored type, times one scale a row where it is rounded.

    Every use makes its own conversion to float32. One that two uses share is not folded into either of
    them and would run over the whole matrix at every step.
    """

    levels: Node
    scales: Node | None = None

    def whole(self) -> Node:
        return self._widened(self.levels, self.scales)

    def rows(self, numbers: Node) -> Node:
        """The rows with these numbers, [*numbers, columns]."""
        scales = None if self.scales is None else ops.gather(self.scales, numbers, integers(0))
        return self._widened(ops.gather(self.levels, numbers, integers(0)), scales)

    def _widened(self, levels: Node, scales: Node | None) -> Node:
        if levels.get_element_type() != Type.f32:
            levels = ops.convert(levels, Type.f32)
        return levels if scales is None else ops.multiply(levels, scales)


class MatrixStore:
    """Puts weight matrices into the graph as they are, and keeps the arrays whose memory they share.

    OpenVINO's bf16 constants do not hold the numpy array they were made from, so `kept` must live as
    long as the model.
    """

    def __init__(self) -> None:
        self.kept: list[Array] = []

    def matrix(self, weight: Weight) -> StoredMatrix:
        values = np.ascontiguousarray(weight.values)
        self.kept.append(values)
        return StoredMatrix(base_ops.Constant(Tensor(values, Shape(values.shape), _TYPES[weight.dtype])))


class Int8Store(MatrixStore):
    """Symmetric 8-bit weights with one scale a row (output channel)."""

    def matrix(self, weight: Weight) -> StoredMatrix:
        values = weight.floats()
        scales = np.maximum(np.abs(values).max(axis=-1, keepdims=True), 1e-8) / INT8_LEVELS
        levels = np.clip(np.rint(values / scales), -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
        return StoredMatrix(ops.constant(levels), floats(scales))


@dataclass(frozen=True)
class Layers:
    """Makes weighted nodes; `matrices` decides how matrices are stored in the graph."""

    matrices: MatrixStore
    norm_epsilon: float

    def project(self, inputs: Node, weight: Weight, bias: Weight | None = None) -> Node:
        """[..., in] -> [..., out], the weight being [out, in]."""
        outputs = ops.matmul(inputs, self.matrices.matrix(weight).whole(), False, True)
        return outputs if bias is None else ops.add(outputs, floats(bias.floats()))

    def rms_norm(self, inputs: Node, weight: Weight) -> Node:
        mean_square = ops.reduce_mean(ops.power(inputs, floats(2.0)), integers(-1), keep_dims=True)
        deviation = ops.sqrt(ops.add(mean_square, floats(self.norm_epsilon)))
        scaled = ops.multiply(inputs, ops.divide(floats(1.0), deviation))
        return ops.multiply(scaled, floats(weight.floats()))
