"""Text of many streams at once: one decoder a request id, kept between the chunks of its answer.

Triton tells a postprocessing step neither which chunk is the first nor which is the last. The preprocessing
step announces every request (`stream_starts.py`), so a decoder never outlives its request id's next use;
what is left is bounded in number and age.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.detokenize import IncrementalDecoder, TokenTexts

MAX_STREAMS = 4096
MAX_IDLE_S = 900.0
RECENT_S = 5.0

Key = tuple[str, int]  # request id, row of the request's batch and beams


class StreamTexts:
    """Decodes the chunks of streams by request id.

    A character that is not complete when its stream ends is never sent: nothing says that it was the end.
    Ids that are missing, or used by several requests at once, cannot tell streams apart; see `_MixedStreams`.
    """

    def __init__(
        self,
        texts: TokenTexts,
        *,
        max_streams: int = MAX_STREAMS,
        max_idle_s: float = MAX_IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._texts = texts
        self._max_streams = max_streams
        self._max_idle_s = max_idle_s
        self._clock = clock
        self._streams: OrderedDict[Key, _Stream] = OrderedDict()
        self._anonymous = _MixedStreams(texts, clock, at_start=False)

    def __len__(self) -> int:
        return len(self._streams)

    def start(self, request_id: str) -> None:
        """A request with this id begins: what an earlier one left behind is dropped.

        If that one was served a moment ago it may not have ended, and both may go on under one id.
        """
        row = 0
        while (old := self._streams.pop((request_id, row), None)) is not None:
            if self._clock() - old.used <= RECENT_S:
                mixed = _MixedStreams(self._texts, self._clock, at_start=True)
                self._streams[request_id, row] = _Stream(mixed.push, self._clock())
            row += 1

    def decode(self, request_id: str, row: int, ids: Sequence[int]) -> str:
        """The text that these ids add to row `row` of the request."""
        if not request_id:
            return self._anonymous.push(ids)
        return self._stream((request_id, row)).push(ids)

    def _stream(self, key: Key) -> _Stream:
        now = self._clock()
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream(IncrementalDecoder(self._texts).push, now)
        stream.used = now
        self._streams.move_to_end(key)
        self._forget_old(now)
        return stream

    def _forget_old(self, now: float) -> None:
        """The first stream is the one that was silent longest."""
        while self._streams:
            oldest = next(iter(self._streams.values()))
            if len(self._streams) <= self._max_streams and now - oldest.used <= self._max_idle_s:
                return
            self._streams.popitem(last=False)


@dataclass
class _Stream:
    push: Callable[[Sequence[int]], str]
    used: float


@dataclass(frozen=True)
class _Half:
    """A decoder that holds the first bytes of a character."""

    decoder: IncrementalDecoder
    since: float


class _MixedStreams:
    """Chunks of several streams that nothing tells apart.

    Each chunk is decoded as the middle of a text, so that spaces stay. A decoder that holds half a
    character is kept for a moment; when exactly one is kept and a chunk begins inside a character, they
    belong together. With several, U+FFFD is sent: better than a character that nobody generated.
    """

    def __init__(self, texts: TokenTexts, clock: Callable[[], float], *, at_start: bool) -> None:
        self._texts = texts
        self._clock = clock
        self._at_start = at_start
        self._halves: list[_Half] = []

    def push(self, ids: Sequence[int]) -> str:
        decoder = self._decoder_for(ids)
        self._at_start = False
        text = decoder.push(ids)
        if decoder.holds_back:
            self._halves.append(_Half(decoder, self._clock()))
        return text

    def _decoder_for(self, ids: Sequence[int]) -> IncrementalDecoder:
        now = self._clock()
        self._halves = [half for half in self._halves if now - half.since <= RECENT_S]
        if len(self._halves) == 1 and ids and self._continues(ids[0]):
            return self._halves.pop().decoder
        return IncrementalDecoder(self._texts, at_start=self._at_start)

    def _continues(self, token_id: int) -> bool:
        """Whether a token begins inside a character: a UTF-8 continuation byte."""
        text = self._texts[token_id]
        return isinstance(text, bytes) and text[0] & 0xC0 == 0x80
