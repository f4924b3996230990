from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker import protocol
from worker.protocol import (
    Failure,
    Finish,
    FrameReader,
    FrameType,
    GenerationRequest,
    ProtocolError,
    Ready,
    Refusal,
    Sampling,
    Stats,
    Status,
    Update,
)

FEW_EXAMPLES = settings(max_examples=50, deadline=None)
INT32 = st.integers(-(2**31), 2**31 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
IDS = st.integers(0, 2**64 - 1)
WORDS = st.lists(st.lists(INT32, min_size=1).map(tuple)).map(tuple)
READY = Ready("cpu", 100, 8, 50, 50, 640, 32, features=(protocol.LOGIT_BIAS,))


def frames_of(data: bytes) -> list[tuple[FrameType, bytes]]:
    return list(FrameReader().feed(data))


def payload_of(data: bytes, kind: FrameType) -> bytes:
    [(found, payload)] = frames_of(data)
    assert found == kind
    return payload


@FEW_EXAMPLES
@given(
    IDS,
    st.lists(INT32),
    st.builds(
        Sampling,
        max_tokens=INT32,
        end_id=st.none() | INT32,
        temperature=st.none() | FLOAT32,
        seed=st.none() | IDS,
        stop_words=WORDS,
        bad_words=WORDS,
        log_probs=st.booleans(),
        guide_type=st.none() | st.text(),
        guide=st.none() | st.text(),
        token_bias=st.lists(st.tuples(INT32, FLOAT32)).map(tuple),
    ),
)
def test_a_request_arrives_as_it_was_sent(request_id: int, tokens: list[int], sampling: Sampling) -> None:
    request = GenerationRequest(request_id, array("i", tokens), sampling)
    assert protocol.decode_submit(payload_of(protocol.encode_submit(request), FrameType.SUBMIT)) == request


@st.composite
def updates(draw: Any) -> Update:
    tokens = draw(st.lists(INT32, max_size=20))
    log_probs = draw(st.none() | st.lists(FLOAT32, min_size=len(tokens), max_size=len(tokens)))
    return Update(
        draw(IDS),
        array("i", tokens),
        draw(st.sampled_from(Finish)),
        None if log_probs is None else array("f", log_probs),
        draw(st.integers(0, 2**62)),
    )


@FEW_EXAMPLES
@given(st.lists(updates()))
def test_one_message_carries_the_tokens_of_all_requests(sent: list[Update]) -> None:
    received = protocol.decode_step(payload_of(protocol.encode_step(sent), FrameType.STEP))
    assert list(received) == sent


@FEW_EXAMPLES
@given(st.lists(st.binary(max_size=60), max_size=8), st.lists(st.integers(1, 40), max_size=60))
def test_frames_survive_any_cutting_of_the_stream(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(protocol.frame(FrameType.STEP, payload) for payload in payloads)
    received: list[tuple[FrameType, bytes]] = []
    reader, position = FrameReader(), 0
    for cut in [*cuts, len(data)]:
        received += reader.feed(data[position : position + cut])
        position += cut
    assert received == [(FrameType.STEP, payload) for payload in payloads]


@pytest.mark.parametrize(
    ("encoded", "kind", "decode", "message"),
    [
        (protocol.encode_cancel(7), FrameType.CANCEL, protocol.decode_cancel, 7),
        (protocol.encode_ready(READY), FrameType.READY, protocol.decode_ready, READY),
        (
            protocol.encode_failure(Failure("a", "b", "c")),
            FrameType.FAILED,
            protocol.decode_failure,
            Failure("a", "b", "c"),
        ),
        (
            protocol.encode_refusal(Refusal(3, Status.UNSUPPORTED, "code", "ünsupported")),
            FrameType.REFUSED,
            protocol.decode_refusal,
            Refusal(3, Status.UNSUPPORTED, "code", "ünsupported"),
        ),
        (
            protocol.encode_stats(Stats(active=2, kv_used_fraction=0.5)),
            FrameType.STATS,
            protocol.decode_stats,
            Stats(active=2, kv_used_fraction=0.5),
        ),
    ],
)
def test_small_messages_arrive_as_they_were_sent(
    encoded: bytes, kind: FrameType, decode: Callable[[bytes], Any], message: Any
) -> None:
    assert decode(payload_of(encoded, kind)) == message


def test_another_protocol_version_is_named() -> None:
    other = Ready("cpu", 100, 8, 50, 50, 640, 32, protocol=protocol.PROTOCOL_VERSION + 1)
    with pytest.raises(ProtocolError, match="different versions"):
        protocol.decode_ready(payload_of(protocol.encode_ready(other), FrameType.READY))


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x00\xff"])
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames_of(data)
