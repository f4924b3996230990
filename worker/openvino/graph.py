"""Build the OpenVINO model of a TRT-LLM checkpoint: config.json and rank files in, graph out.

The graph has the inputs input_ids, attention_mask, position_ids and beam_idx, a stateful key-value
cache and the output logits, [batch, length, vocab_size]. OpenVINO GenAI's ContinuousBatchingPipeline
turns its attention into paged attention.
"""

from __future__ import annotations

from pathlib import Path

import openvino as ov
from openvino import Node
from openvino import opset13 as ops

from common.errors import UsageError
from worker.openvino.attention import Attention, Inputs
from worker.openvino.mlp import feed_forward
from worker.openvino.nodes import Int8Store, Layers, MatrixStore
from worker.openvino.spec import ModelSpec, read_config
from worker.openvino.weights import CheckpointWeights

__all__ = ["PRECISIONS", "ModelSpec", "build_model", "read_config", "write_ir"]

PRECISIONS: dict[str, type[MatrixStore]] = {"exact": MatrixStore, "fast": MatrixStore, "int8": Int8Store}


def build_model(checkpoint: Path, precision: str = "exact", window: int | None = None) -> ov.Model:
    """The model of a TRT-LLM checkpoint folder, all its ranks joined.

    Args:
        checkpoint: folder with config.json and rank{i}.safetensors.
        precision: `exact` and `fast` keep the weights in the dtype of the checkpoint and leave the compute
            precision to the plugin (INFERENCE_PRECISION_HINT); `int8` rounds matrices to 8 bits.

        window: tokens that a query sees, itself included; None for all. A TRT-LLM checkpoint does not
            carry its model's sliding window; TensorRT-LLM gets it as max_attention_window_size.

    Raises:
        UsageError: unknown precision, or a window that is not positive.
        CheckpointError: not a TRT-LLM checkpoint, or incomplete.
        UnsupportedModelError: the cpu engine cannot compute this model.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"Unknown precision {precision!r}.", hint=f"Use one of: {', '.join(sorted(PRECISIONS))}."
        )
    if window is not None and window < 1:
        raise UsageError(f"An attention window of {window} tokens shows a token nothing.")
    spec = read_config(checkpoint)
    weights = CheckpointWeights(checkpoint, spec)
    layers = Layers(PRECISIONS[precision](), spec.norm_epsilon)
    inputs = Inputs.create()
    attention = Attention(spec, layers, weights, inputs, window)
    logits = _logits(spec, layers, weights, attention)
    logits.output(0).set_names({"logits"})
    model = ov.Model([ops.result(logits)], attention.sinks, inputs.nodes(), spec.architecture)
    # The graph's constants share this memory but do not hold it.
    model.weights_memory = layers.matrices.kept
    return model


def _logits(spec: ModelSpec, layers: Layers, weights: CheckpointWeights, attention: Attention) -> Node:
    embedding = layers.matrices.matrix(weights.embedding())
    hidden = embedding.rows(attention.inputs.input_ids)
    for layer in range(spec.layers):
        normed = layers.rms_norm(hidden, weights.whole(layer, "input_layernorm.weight"))
        hidden = ops.add(hidden, attention.build(layer, normed))
        normed = layers.rms_norm(hidden, weights.whole(layer, "post_layernorm.weight"))
        hidden = ops.add(hidden, feed_forward(weights, layers, spec.experts, layer, normed))
    hidden = layers.rms_norm(hidden, weights.final_norm())
    head = weights.head()
    projection = embedding if head is None else layers.matrices.matrix(head)
    return ops.matmul(hidden, projection.whole(), False, True)


def write_ir(checkpoint: Path, folder: Path, precision: str = "exact", window: int | None = None) -> None:
    """Save the model into `folder` as openvino_model.xml and .bin, as ContinuousBatchingPipeline loads it.

    Raises:
        the errors of `build_model`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(checkpoint, precision, window)
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
