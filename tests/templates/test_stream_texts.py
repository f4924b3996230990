"""Postprocessing: decoders by request id, bounded, and safe where ids do not tell streams apart."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from common.detokenize import REPLACEMENT, TokenTexts
from tests.proxy.tokenizers_made import byte_level, sentencepiece

TEXTS = (" leading space", "你好，世界！", "👩‍👩‍👧 family", "naïve, Москва\n\n  end")
TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def streams(name: str = "byte-level", **options: Any) -> Any:
    return importlib.import_module("stream_texts").StreamTexts(TokenTexts(TOKENIZERS[name]), **options)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_interleaved_streams_come_out_whole(name: str, data: st.DataObject) -> None:
    tokenizer, decoders = TOKENIZERS[name], streams(name)
    waiting = {f"r{index}": ids_of(tokenizer, text) for index, text in enumerate(TEXTS)}
    expected = {key: tokenizer.decode(ids) for key, ids in waiting.items()}
    got = dict.fromkeys(waiting, "")
    while any(waiting.values()):
        key = data.draw(st.sampled_from([key for key, ids in waiting.items() if ids]))
        size = data.draw(st.integers(1, 3))
        got[key] += decoders.decode(key, 0, waiting[key][:size])
        waiting[key] = waiting[key][size:]
    assert got == expected
    assert REPLACEMENT not in "".join(got.values())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_id_used_again_starts_afresh(name: str, clock: Clock) -> None:
    tokenizer, decoders = TOKENIZERS[name], streams(name, clock=clock)
    cut = ids_of(tokenizer, "x🌏")[:-1]
    whole = ids_of(tokenizer, " 世界 fox")
    for pause in (0.0, 100.0):
        decoders.start("same")
        assert decoders.decode("same", 0, cut).strip() == "x"
        clock.now += pause
        decoders.start("same")
        assert "".join(decoders.decode("same", 0, [token]) for token in whole) == tokenizer.decode(whole)
        clock.now += 100.0


def test_concurrent_requests_with_one_id_never_mix_characters(clock: Clock) -> None:
    decoders = streams(clock=clock)
    first, second = (ids_of(TOKENIZERS["byte-level"], text) for text in ("ж" * 10, "你" * 10))
    got = ""
    for position in range(max(len(first), len(second))):
        for ids in (first, second):
            if position == 0:
                decoders.start("dup")
            got += decoders.decode("dup", 0, ids[position : position + 1])
    assert set(got) <= {"ж", "你", REPLACEMENT}


def test_chunks_without_id(clock: Clock) -> None:
    for name, tokenizer in TOKENIZERS.items():
        decoders = streams(name, clock=clock)
        ids = ids_of(tokenizer, "the 你好🌏 end")
        assert "".join(decoders.decode("", 0, [token]) for token in ids).strip() == "the 你好🌏 end"
        assert len(decoders) == 0


def test_half_a_character_without_id_is_not_given_to_a_later_stream(clock: Clock) -> None:
    decoders = streams(clock=clock)
    half = ids_of(TOKENIZERS["byte-level"], "🌏")
    assert decoders.decode("", 0, half[:-1]) == ""
    clock.now += 60
    assert decoders.decode("", 0, half[-1:]) == REPLACEMENT


def test_batch_rows_have_their_own_text() -> None:
    decoders = streams()
    ids = ids_of(TOKENIZERS["byte-level"], "🌏")
    assert [decoders.decode("r", row, ids[:2]) for row in range(2)] == ["", ""]
    assert [decoders.decode("r", row, ids[2:]) for row in range(2)] == ["🌏", "🌏"]
    decoders.start("r")
    assert decoders.decode("r", 1, ids) == "🌏"


def test_state_is_bounded_in_number_and_age(clock: Clock) -> None:
    decoders = streams(clock=clock, max_streams=10, max_idle_s=60)
    ids = ids_of(TOKENIZERS["byte-level"], "🌏")
    for number in range(1000):
        decoders.decode(f"r{number}", 0, ids[:1])
    assert len(decoders) == 10
    decoders.decode("r990", 0, ids[1:2])
    decoders.decode("new", 0, ids[:1])
    assert decoders.decode("r990", 0, ids[2:]) == "🌏"
    clock.now += 61
    decoders.decode("late", 0, ids[:1])
    assert len(decoders) == 1
