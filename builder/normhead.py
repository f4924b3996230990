"""Baichuan 2's NormHead: rows divided by their L2 norm, bit for bit as PyTorch on a CPU does it.

`torch.nn.functional.normalize` takes the norm in float32 and rounds it to the tensor's dtype. The order of
its additions shows in the last bit, so it is kept: eight running sums over the row for float32 and bfloat16
(blocks of 8 and 16 values), one for float16; then the sums from left to right, then what is left of the row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from common.casts import Array, cast

Floats = npt.NDArray[np.float32]

SMALLEST_NORM = np.full(1, 1e-12, np.float32)
RUNNING_SUMS_AND_BLOCK = {"F32": (8, 8), "BF16": (8, 16), "F16": (1, 1)}


def _square_sums(wide: Floats, dtype: str) -> Floats:
    sums, block = RUNNING_SUMS_AND_BLOCK[dtype]
    squares = wide * wide
    rows, width = squares.shape
    whole = width // block * block
    columns = squares[:, :whole].reshape(rows, -1, sums).transpose(1, 0, 2)
    running = np.add.reduce(np.ascontiguousarray(columns), axis=0)
    total: Floats = np.zeros(rows, np.float32)
    for part in (*running.T, *squares[:, whole:].T):
        total = total + part
    return total


def normalise_rows(values: Array, dtype: str) -> Array:
    """`values` [rows, width] in stored form of `dtype`, each row divided by its norm, in the same form.

    A row of zeros stays zero (PyTorch makes it NaN in float16, where its smallest norm 1e-12 is zero).
    """
    wide = cast(values, dtype, "F32")
    norms, smallest = (
        cast(cast(each, "F32", dtype), dtype, "F32")
        for each in (np.sqrt(_square_sums(wide, dtype)), SMALLEST_NORM)
    )
    divisors = np.maximum(norms, smallest)
    divisors[divisors == 0] = 1
    return cast(wide / divisors[:, None], "F32", dtype)
