"""Stop words and banned tokens, followed token by token."""

from __future__ import annotations

from typing import Any

import pytest

from worker.openvino.banning import BannedTokens
from worker.protocol import Sampling
from worker.stopping import StopWords
from worker.validate import RequestRefused


@pytest.mark.parametrize(
    ("words", "tokens", "stops_at"),
    [
        ([], [1, 2, 3], None),
        ([()], [1, 2, 3], None),
        ([(2,)], [1, 2, 3], 1),
        ([(1, 2, 3)], [1, 1, 2, 3], 3),
        ([(1, 2, 3), (2,)], [1, 2, 3], 1),
        ([(7, 7)], [7, 8, 7, 7], 3),
    ],
)
def test_a_stop_word_stops_where_it_is_complete(
    words: list[tuple[int, ...]], tokens: list[int], stops_at: int | None
) -> None:
    stop_words = StopWords(words)
    hits = [place for place, token in enumerate(tokens) if stop_words.ends_with(token)]
    assert (hits[0] if hits else None) == stops_at


def banned_after(sampling: Sampling, prompt: list[int], generated: list[int]) -> set[int]:
    banned = BannedTokens(sampling, prompt)
    for token in generated:
        banned.append(token)
    return set(banned.next())


def test_single_tokens_are_always_banned_and_phrases_at_their_end() -> None:
    sampling = Sampling(max_tokens=9, bad_words=((4,), (1, 2), (1, 2, 3), (8, 1, 9)))
    assert banned_after(sampling, [5], []) == {4}
    assert banned_after(sampling, [5], [1]) == {4, 2}
    assert banned_after(sampling, [1], [2]) == {4, 3}
    assert banned_after(sampling, [8], [1]) == {4, 2, 9}
    assert banned_after(sampling, [8], [1, 5]) == {4}


def test_the_end_id_is_banned_until_min_tokens() -> None:
    sampling = Sampling(max_tokens=9, min_tokens=2, end_id=0, bad_words=((4,),))
    assert banned_after(sampling, [5], [6]) == {0, 4}
    assert banned_after(sampling, [5], [6, 7]) == {4}


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_penalties_that_a_new_segment_would_forget_are_refused(penalty: str) -> None:
    penalised: dict[str, Any] = {"max_tokens": 9, penalty: 0.5}
    with pytest.raises(RequestRefused, match=penalty):
        BannedTokens(Sampling(**penalised, bad_words=((1, 2),)), [5])
    assert BannedTokens(Sampling(**penalised, bad_words=((1,),)), [5]).next() == {1}
