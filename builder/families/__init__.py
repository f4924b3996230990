"""Model families: how their weights and settings become a TensorRT-LLM checkpoint, and back."""

from builder.families.dims import Dims, read_dims
from builder.families.layout import Layout, Rank
from builder.families.registry import (
    FAMILIES,
    MODEL_TYPES,
    Detection,
    Family,
    detect,
    trtllm_config,
    weight_map,
)

__all__ = [
    "FAMILIES",
    "MODEL_TYPES",
    "Detection",
    "Dims",
    "Family",
    "Layout",
    "Rank",
    "detect",
    "read_dims",
    "trtllm_config",
    "weight_map",
]
