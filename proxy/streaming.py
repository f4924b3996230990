"""Writing a generation to a client: the hot loop, and every way that it can end."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

from common.errors import EwError, ServiceError
from proxy import metrics
from proxy.generation import Generation, is_whole
from proxy.http import ClientConnection, ClientGone, Headers, Receive, Send, watch
from proxy.relay import Relay

NO_BUFFERING: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
PSEUDO = (b"x-stream-mode", b"pseudo")


class Framing(Protocol):
    """How one API writes a stream. `end` is only for whole answers; `failure` ends all others."""

    content_type: bytes

    def begin(self) -> bytes: ...
    def delta(self, text: str) -> bytes: ...
    def end(self, generation: Generation) -> bytes: ...
    def failure(self, generation: Generation, error: EwError) -> bytes: ...


class TimedOut(ServiceError):
    http_status = 504
    default_code = "timeout"


class Drained(ServiceError):
    default_code = "draining"


async def stream(
    generation: Generation,
    framing: Framing,
    receive: Receive,
    send: Send,
    client: ClientConnection,
    header_hold: float,
) -> None:
    """Stream a generation.

    The status line waits for the engine's first answer, for at most `header_hold` seconds, so that an
    engine's refusal is an HTTP error and not a broken stream.

    Raises:
        EwError: the generation failed before anything was sent.
        ClientGone: nobody is there any more.
    """
    watcher = asyncio.get_running_loop().create_task(watch(receive, lambda: generation.cancel("client_gone")))
    opening = asyncio.ensure_future(generation.first_text())
    try:
        await asyncio.wait((opening,), timeout=header_hold)
        if opening.done():
            opening.result()
            refuse_empty_end(generation)
        await send(_start(framing, generation))
        await _write(generation, framing, opening, send, client)
    finally:
        watcher.cancel()
        if not opening.done():
            opening.cancel()
            await asyncio.wait((opening,))
        generation.close()


async def _write(
    generation: Generation,
    framing: Framing,
    opening: asyncio.Future[str],
    send: Send,
    client: ClientConnection,
) -> None:
    timings = generation.timings
    timings.added += timings.sent - timings.arrived
    try:
        beginning = framing.begin()
        for piece in generation.pieces(await opening):
            await _send(send, beginning + framing.delta(piece))
            beginning = b""
        timings.added += perf_counter() - generation.received_at
        await _send(send, beginning)
        await Relay(generation, framing.delta, client).run()
    except EwError as error:
        await _send(send, _failure(framing, generation, error), last=True)
        return
    if generation.cause == "client_gone":
        raise ClientGone
    if is_whole(generation):
        await _send(send, framing.end(generation), last=True)
    else:
        await _send(send, _failure(framing, generation, early_end(generation)), last=True)


def _failure(framing: Framing, generation: Generation, error: EwError) -> bytes:
    """The last event of a stream that broke after its status line had said 200."""
    metrics.of_model(generation.request.model.model_id).stream_broke(error.code)
    return framing.failure(generation, error)


async def whole_text(generation: Generation, receive: Receive) -> str:
    """The text of a request that does not stream; the client is watched all the same.

    Raises:
        EwError: the generation failed, or was stopped before its first token.
        ClientGone: nobody is there any more.
    """
    watcher = asyncio.get_running_loop().create_task(watch(receive, lambda: generation.cancel("client_gone")))
    try:
        parts = [text async for text in generation.texts()]
    finally:
        watcher.cancel()
    refuse_empty_end(generation)
    timings = generation.timings
    timings.added = perf_counter() - timings.last + timings.sent - timings.arrived
    return "".join(parts)


def early_end(generation: Generation) -> EwError:
    """Why an answer is not whole, as an error."""
    if generation.finish_reason == "timeout":
        return TimedOut(
            "The answer took longer than allowed.",
            why=f"The limit is {generation.request.timeout:g} seconds.",
            hint="Raise timeoutMs, or ask for fewer tokens.",
        )
    return Drained("The service is shutting down.", hint="Send the request again.")


def refuse_empty_end(generation: Generation) -> None:
    """Ended early without a token: an HTTP error is more honest than an empty answer."""
    if generation.cause == "client_gone":
        raise ClientGone
    if generation.cause is not None and not generation.completion_tokens:
        raise early_end(generation)


def _start(framing: Framing, generation: Generation) -> dict[str, object]:
    headers = [(b"content-type", framing.content_type), *NO_BUFFERING]
    if generation.pseudo:
        headers.append(PSEUDO)
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def _send(send: Send, body: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})
