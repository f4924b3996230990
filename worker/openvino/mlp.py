"""The feed-forward part of a layer: one gated MLP, or a mixture of them."""

from __future__ import annotations

import numpy as np
from openvino import Node
from openvino import opset13 as ops

from worker.openvino.nodes import Layers, floats, integers
from worker.openvino.spec import Experts
from worker.openvino.weights import CheckpointWeights, Weight


def feed_forward(
    weights: CheckpointWeights, layers: Layers, experts: Experts | None, layer: int, hidden: Node
) -> Node:
    """[batch, length, hidden] -> the same shape."""
    if experts is None or not weights.has(layer, "mlp.router.weight"):
        return _dense(weights, layers, layer, hidden)
    mixed = _mixture(weights, layers, experts, layer, hidden)
    if weights.has(layer, "mlp.shared_expert.fc.weight"):
        return ops.add(mixed, _shared_expert(weights, layers, layer, hidden))
    return mixed


def _gated(layers: Layers, up: Node, gate: Node, down: Weight, bias: Weight | None) -> Node:
    return layers.project(ops.multiply(ops.swish(gate), up), down, bias)


def _dense(weights: CheckpointWeights, layers: Layers, layer: int, hidden: Node) -> Node:
    """fc is the activated branch and gate the linear one; without gate, fc holds [linear ; activated]."""
    down = weights.columns(layer, "mlp.proj.weight")
    down_bias = weights.optional(layer, "mlp.proj.bias")
    if weights.has(layer, "mlp.gate.weight"):
        linear, activated = (weights.rows(layer, f"mlp.{name}.weight") for name in ("gate", "fc"))
        biases = [weights.optional_rows(layer, f"mlp.{name}.bias") for name in ("gate", "fc")]
    else:
        linear, activated = weights.row_blocks(layer, "mlp.fc.weight", 2)
        has_bias = weights.has(layer, "mlp.fc.bias")
        biases = [*weights.row_blocks(layer, "mlp.fc.bias", 2)] if has_bias else [None, None]
    up = layers.project(hidden, linear, biases[0])
    gate = layers.project(hidden, activated, biases[1])
    return _gated(layers, up, gate, down, down_bias)


def _shared_expert(weights: CheckpointWeights, layers: Layers, layer: int, hidden: Node) -> Node:
    linear, activated = weights.row_blocks(layer, "mlp.shared_expert.fc.weight", 2)
    down = weights.columns(layer, "mlp.shared_expert.proj.weight")
    up, gate = layers.project(hidden, linear), layers.project(hidden, activated)
    output = _gated(layers, up, gate, down, None)
    if not weights.has(layer, "mlp.shared_expert_gate.weight"):
        return output
    share = layers.project(hidden, weights.whole(layer, "mlp.shared_expert_gate.weight"))
    return ops.multiply(output, ops.sigmoid(share))


def _mixture(weights: CheckpointWeights, layers: Layers, experts: Experts, layer: int, hidden: Node) -> Node:
    """Every expert computes every token and the router's weights, mostly zero, add them up."""
    shares = _router(weights, experts, layer, hidden)
    linear, activated = weights.experts(layer, "mlp.fc.weight", blocks=2, axis=1)
    (down,) = weights.experts(layer, "mlp.proj.weight", blocks=1, axis=2)
    total: Node | None = None
    for index in range(experts.count):
        up, gate = layers.project(hidden, linear[index]), layers.project(hidden, activated[index])
        output = _gated(layers, up, gate, down[index], None)
        share = ops.gather(shares, integers(index), integers(-1))
        weighted = ops.multiply(output, share)
        total = weighted if total is None else ops.add(total, weighted)
    assert total is not None
    return total


def _router(weights: CheckpointWeights, experts: Experts, layer: int, hidden: Node) -> Node:
    """Each token's weight of each expert, [batch, length, experts], zero outside its top k."""
    router = floats(weights.whole(layer, "mlp.router.weight").floats())
    scores = ops.softmax(ops.matmul(hidden, router, False, True), -1)
    top_k = ops.constant(np.int64(experts.top_k))
    best, indices = ops.topk(scores, top_k, -1, "max", "value", "i64").outputs()
    if experts.renormalize:
        best = ops.divide(best, ops.reduce_sum(best, integers(-1), keep_dims=True)).output(0)
    nothing = ops.broadcast(floats(0.0), ops.shape_of(scores))
    return ops.scatter_elements_update(nothing, indices, best, integers(-1))
