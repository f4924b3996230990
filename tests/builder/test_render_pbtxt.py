"""The protobuf text filter, against the protobuf parser itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.pbtxt import parse_config, quote
from common.errors import RepositoryError


@given(st.text())
def test_any_text_survives_quoting(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return
    config = parse_config(f"name: {quote(text)}", source="test")
    assert config.name == text


@pytest.mark.parametrize(
    "text", ['a"b', "a\\", "tab\there", "a\nb", "\x00\x7f", "0\x011", "中文 👩‍👩‍👧‍👦", '" } x {']
)
def test_hard_cases(text: str) -> None:
    quoted = quote(text)
    assert "\n" not in quoted
    assert parse_config(f"name: {quoted}", source="test").name == text


@pytest.mark.parametrize(
    "text", ["nmae: 'x'", "max_batch_size: ${triton_max_batch_size}", "name: 'x", "input {"]
)
def test_what_is_no_model_config_is_refused(text: str) -> None:
    with pytest.raises(RepositoryError) as caught:
        parse_config(text, source="x/config.pbtxt")
    assert caught.value.what.startswith("x/config.pbtxt")
    assert caught.value.why.startswith("1:")
