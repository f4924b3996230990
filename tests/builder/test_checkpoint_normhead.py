from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from builder.normhead import normalise_rows
from common.tensors import STORED, cast
from tests.builder.make_normhead_digests import DTYPES, EXPECTED, WIDTHS, numbers

DIGESTS = json.loads(EXPECTED.read_text())["digests"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_is_pytorchs(dtype: str, width: int) -> None:
    values = cast(numbers(width), "F32", dtype)
    result = normalise_rows(values, dtype)
    assert hashlib.sha256(result.tobytes()).hexdigest() == DIGESTS[f"{dtype} {width}"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_stays_zero(dtype: str) -> None:
    values = np.zeros((2, 40), STORED[dtype])
    assert not cast(normalise_rows(values, dtype), dtype, "F32").any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_each_other(dtype: str) -> None:
    values = cast(numbers(100), "F32", dtype)
    whole = normalise_rows(values, dtype)
    parts = [normalise_rows(values[start : start + 7], dtype) for start in range(0, len(values), 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
