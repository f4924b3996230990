"""Exact casts between the stored forms of floating point tensors, as PyTorch rounds them.

Round to nearest, ties to even; overflow becomes infinity. BF16 is stored as uint16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
U16 = npt.NDArray[np.uint16]

STORED: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E5M2": np.dtype(np.uint8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
FLOATS = ("F16", "BF16", "F32", "F64")
PIECE = 1 << 17  # items; large enough to hide the calls, small enough for the cache

SIGN = np.uint16(0x8000)
F16_INFINITY = np.uint16(0x7C00)
BIAS_GAP = 127 - 15  # between the exponent biases of 8-bit and 5-bit exponents


def _f32_to_bf16(source: Array, target: U16) -> None:
    bits = source.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits  # wraps for some NaN only, which are set below
    rounded >>= np.uint32(16)
    target[...] = rounded
    not_numbers = np.isnan(source)
    if not_numbers.any():
        target[not_numbers] = 0x7FC0


def _bf16_to_f32(source: U16, target: Array) -> None:
    np.left_shift(source, np.uint32(16), out=target.view(np.uint32), dtype=np.uint32)


def _f32_to_f16(source: Array, target: Array) -> int:
    """Returns how many numbers became infinite; the processor says for nothing whether there are any."""
    overflows: list[str] = []
    with np.errstate(
        over="call", invalid="ignore", under="ignore", call=lambda kind, _: overflows.append(kind)
    ):
        target[...] = source
    if not overflows:
        return 0
    return int(np.count_nonzero(np.isinf(target)) - np.count_nonzero(np.isinf(source)))


def _widen(source: Array, target: Array) -> None:
    with np.errstate(invalid="ignore"):
        target[...] = source


def _f64_to_bf16(source: Array, target: U16) -> None:
    with np.errstate(over="ignore", under="ignore"):
        _f32_to_bf16(source.astype(np.float32), target)


def _bf16_to_f16(source: U16, target: Array) -> int:
    """Inside the normal range of F16 every BF16 value is exact: move the bits, then mend the rest.

    Returns how many numbers became infinite.
    """
    low, high = np.uint16((BIAS_GAP + 1) << 7), np.uint16((BIAS_GAP + 31) << 7)
    magnitude = source & ~SIGN
    result = target.view(np.uint16)
    np.subtract(magnitude, low, out=magnitude)
    outside = magnitude >= np.uint16(high - low)  # also what wrapped below zero
    np.left_shift(magnitude, np.uint16(3), out=result)
    result += np.uint16(1 << 10)
    result &= ~SIGN
    result |= source & SIGN
    where = np.flatnonzero(outside)
    if not where.size:
        return 0
    wide, narrow = np.empty(where.size, np.float32), np.empty(where.size, np.float16)
    _bf16_to_f32(source[where], wide)
    overflows = _f32_to_f16(wide, narrow)
    result[where] = narrow.view(np.uint16)
    return overflows


def _f16_to_bf16(source: Array, target: U16) -> None:
    """Round three bits away and move the exponent; subnormals, infinities and NaN are mended after."""
    bits = source.view(np.uint16)
    magnitude = bits & ~SIGN
    outside = (magnitude - np.uint16(1 << 10)) >= np.uint16(30 << 10)
    tie = magnitude >> np.uint16(3)
    tie &= np.uint16(1)
    magnitude += np.uint16(3)
    magnitude += tie
    magnitude >>= np.uint16(3)
    magnitude += np.uint16(BIAS_GAP << 7)
    magnitude |= bits & SIGN
    target[...] = magnitude
    where = np.flatnonzero(outside)
    if where.size:
        wide, narrow = np.empty(where.size, np.float32), np.empty(where.size, np.uint16)
        _widen(source[where], wide)
        _f32_to_bf16(wide, narrow)
        target[where] = narrow


def _bf16_to_f64(source: U16, target: Array) -> None:
    wide = np.empty(source.size, np.float32)
    _bf16_to_f32(source, wide)
    with np.errstate(invalid="ignore"):
        target[...] = wide


CASTS: dict[tuple[str, str], Callable[[Any, Any], int | None]] = {
    ("F32", "BF16"): _f32_to_bf16,
    ("F64", "BF16"): _f64_to_bf16,
    ("F16", "BF16"): _f16_to_bf16,
    ("BF16", "F32"): _bf16_to_f32,
    ("BF16", "F64"): _bf16_to_f64,
    ("BF16", "F16"): _bf16_to_f16,
    ("F32", "F16"): _f32_to_f16,
    ("F64", "F16"): _f32_to_f16,
    ("F64", "F32"): _f32_to_f16,
    ("F16", "F32"): _widen,
    ("F16", "F64"): _widen,
    ("F32", "F64"): _widen,
}


def cast_into(source: Array, source_dtype: str, target: Array, target_dtype: str) -> int:
    """Fill `target` with `source` in another dtype. Both are contiguous and have the same number of items.

    Returns how many numbers became infinite, for the targets F16 and F32.
    """
    flat, result = source.reshape(-1), target.reshape(-1)
    if source_dtype == target_dtype:
        result[...] = flat
        return 0
    convert = CASTS[source_dtype, target_dtype]
    overflows = 0
    for start in range(0, flat.size, PIECE):
        overflows += convert(flat[start : start + PIECE], result[start : start + PIECE]) or 0
    return overflows


def cast(view: Array, source_dtype: str, target_dtype: str) -> Array:
    """`view` in another floating point dtype, same shape; `view` itself when nothing changes.

    Args:
        view: the tensor in the stored form of `source_dtype`.
        source_dtype, target_dtype: safetensors names among F16, BF16, F32, F64.
    """
    if source_dtype == target_dtype:
        return view
    source = np.ascontiguousarray(view)
    target = np.empty(view.shape, STORED[target_dtype])
    cast_into(source, source_dtype, target, target_dtype)
    return target
