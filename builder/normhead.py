"""Baichuan 2's NormHead: rows divided by their L2 norm, in the arithmetic of PyTorch."""

from __future__ import annotations

import numpy as np

from common.casts import Array, cast

SMALLEST_NORM = 1e-12


def normalise_rows(values: Array, dtype: str) -> Array:
    """`values` [rows, width] in stored form of `dtype`, each row divided by its norm; result the same way.

    The norm adds up in float32 and is rounded to `dtype`; the quotient is rounded to `dtype`.
    """
    wide = cast(values, dtype, "F32")
    norms = np.sqrt(np.sum(wide * wide, axis=1, keepdims=True, dtype=np.float32))
    norms = cast(cast(norms, "F32", dtype), dtype, "F32")
    quotient = wide / np.maximum(norms, np.float32(SMALLEST_NORM))
    return cast(quotient, "F32", dtype)
