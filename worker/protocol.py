"""What the bridge inside Triton and the engine worker say to each other over one socket.

Standard library only: this file is copied beside the bridge's model.py, where nothing of ours is importable.
A frame is a header (payload length as u32, type as u8, little-endian) and a payload. Token ids are raw int32;
JSON is used once per request or second, never per engine step.
"""

from __future__ import annotations

import enum
import json
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

PROTOCOL_VERSION = 2
MAX_PAYLOAD = 256 << 20
# What an engine may be able to do beyond sampling; it names them in READY.
GUIDED_DECODING = "guided_decoding"
LOGIT_BIAS = "logit_bias"
LORA = "lora"
GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar")

_HEADER = struct.Struct("<IB")
_ID = struct.Struct("<Q")
_SUBMIT = struct.Struct("<QI")
# request id, time the engine took the request (CLOCK_MONOTONIC, ns), tokens, finish, has log probabilities
_UPDATE = struct.Struct("<QqIB?")


class FrameType(enum.IntEnum):
    SUBMIT = 1
    CANCEL = 2
    READY = 16
    FAILED = 17
    STEP = 18
    REFUSED = 19
    STATS = 20


class Finish(enum.IntEnum):
    """Why a request ended; NONE while it runs."""

    NONE = 0
    END_ID = 1
    LENGTH = 2
    STOP_WORDS = 3
    CANCELLED = 4


class Status(str, enum.Enum):
    """What kind of refusal it is; the bridge turns it into Triton's error code."""

    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class ProtocolError(Exception):
    """The other side sent bytes that are no frame of this protocol version."""


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. None means: not given. Word lists are sequences of token ids.

    `guide_type` is one of GUIDE_TYPES and `guide` what it reads; `token_bias` holds (token id, what is
    added to its logit). `lora_task_id` is an adapter of the model.
    """

    max_tokens: int
    min_tokens: int = 0
    end_id: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop_words: tuple[tuple[int, ...], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    log_probs: bool = False
    guide_type: str | None = None
    guide: str | None = None
    token_bias: tuple[tuple[int, float], ...] = ()
    lora_task_id: int | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue. `request_id` is unique over the life of a worker; `input_ids` is int32."""

    request_id: int
    input_ids: array[int]
    sampling: Sampling


@dataclass(frozen=True)
class Update:
    """New tokens of one request, and why it ended if it did. `log_probs` is empty unless asked for."""

    request_id: int
    tokens: array[int]
    finish: Finish = Finish.NONE
    log_probs: array[float] | None = None
    scheduled_ns: int = 0


@dataclass(frozen=True)
class Refusal:
    """A request that the worker does not run or could not finish."""

    request_id: int
    status: Status
    code: str
    message: str


@dataclass(frozen=True)
class Ready:
    """Sent once, when the engine accepts requests. Sizes are in tokens; `features` are what it can do."""

    engine: str
    vocab_size: int
    max_batch_size: int
    max_input_len: int
    max_output_len: int
    kv_cache_tokens: int
    kv_block_tokens: int
    protocol: int = PROTOCOL_VERSION
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Sent instead of Ready when the engine cannot start."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Stats:
    """State of the engine. `step_age_s` is how long the running engine step has taken, 0 when idle."""

    active: int = 0
    scheduled: int = 0
    kv_used_fraction: float = 0.0
    steps: int = 0
    generated_tokens: int = 0
    tokens_per_second: float = 0.0
    step_age_s: float = 0.0


def frame(kind: FrameType, payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), kind) + payload


def encode_submit(request: GenerationRequest) -> bytes:
    head = _SUBMIT.pack(request.request_id, len(request.input_ids))
    sampling = json.dumps(vars(request.sampling)).encode()
    return frame(FrameType.SUBMIT, head + request.input_ids.tobytes() + sampling)


def decode_submit(payload: bytes) -> GenerationRequest:
    request_id, count = _SUBMIT.unpack_from(payload)
    end = _SUBMIT.size + 4 * count
    input_ids = array("i")
    input_ids.frombytes(payload[_SUBMIT.size : end])
    sampling = json.loads(payload[end:])
    for pairs in ("stop_words", "bad_words", "token_bias"):
        sampling[pairs] = tuple(map(tuple, sampling[pairs]))
    return GenerationRequest(request_id, input_ids, Sampling(**sampling))


def encode_cancel(request_id: int) -> bytes:
    return frame(FrameType.CANCEL, _ID.pack(request_id))


def decode_cancel(payload: bytes) -> int:
    return int(_ID.unpack(payload)[0])


def encode_step(updates: Iterable[Update]) -> bytes:
    parts: list[bytes] = []
    for update in updates:
        has_log_probs = update.log_probs is not None
        parts.append(
            _UPDATE.pack(
                update.request_id, update.scheduled_ns, len(update.tokens), update.finish, has_log_probs
            )
        )
        parts.append(update.tokens.tobytes())
        if update.log_probs is not None:
            parts.append(update.log_probs.tobytes())
    return frame(FrameType.STEP, b"".join(parts))


def decode_step(payload: bytes) -> Iterator[Update]:
    position = 0
    while position < len(payload):
        request_id, scheduled_ns, count, finish, has_log_probs = _UPDATE.unpack_from(payload, position)
        position += _UPDATE.size
        tokens = array("i")
        tokens.frombytes(payload[position : position + 4 * count])
        position += 4 * count
        log_probs: array[float] | None = None
        if has_log_probs:
            log_probs = array("f")
            log_probs.frombytes(payload[position : position + 4 * count])
            position += 4 * count
        yield Update(request_id, tokens, Finish(finish), log_probs, scheduled_ns)


def encode_refusal(refusal: Refusal) -> bytes:
    return _encode_json(FrameType.REFUSED, refusal)


def decode_refusal(payload: bytes) -> Refusal:
    document = json.loads(payload)
    document["status"] = Status(document["status"])
    return Refusal(**document)


def encode_ready(ready: Ready) -> bytes:
    return _encode_json(FrameType.READY, ready)


def decode_ready(payload: bytes) -> Ready:
    """Raises ProtocolError when the worker speaks another protocol version."""
    document = json.loads(payload)
    if document.get("protocol") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"The worker speaks protocol {document.get('protocol')}, the bridge {PROTOCOL_VERSION}: "
            "they come from different versions of ew. Render the model repository again."
        )
    document["features"] = tuple(document["features"])
    return Ready(**document)


def encode_failure(failure: Failure) -> bytes:
    return _encode_json(FrameType.FAILED, failure)


def decode_failure(payload: bytes) -> Failure:
    return Failure(**json.loads(payload))


def encode_stats(stats: Stats) -> bytes:
    return _encode_json(FrameType.STATS, stats)


def decode_stats(payload: bytes) -> Stats:
    known = {field.name for field in fields(Stats)}
    return Stats(**{key: value for key, value in json.loads(payload).items() if key in known})


def _encode_json(kind: FrameType, message: Any) -> bytes:
    return frame(kind, json.dumps(asdict(message)).encode())


class FrameReader:
    """Cuts a byte stream into frames, whatever pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[FrameType, bytes]]:
        """Yield the frames that `data` completes.

        Raises:
            ProtocolError: a length or type that no frame has.
        """
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= _HEADER.size:
                length, kind = _HEADER.unpack_from(self._buffer, position)
                start = position + _HEADER.size
                _check_header(length, kind)
                if len(self._buffer) - start < length:
                    break
                position = start + length
                yield FrameType(kind), bytes(self._buffer[start:position])
        finally:
            del self._buffer[:position]


def _check_header(length: int, kind: int) -> None:
    if length > MAX_PAYLOAD or kind not in FrameType._value2member_map_:
        raise ProtocolError(f"Not a frame: type {kind}, {length} bytes.")
