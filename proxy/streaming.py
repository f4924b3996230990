"""Writing a generation to a client: the hot loop, and every way that it can end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from common.errors import EwError, ServiceError
from proxy import metrics
from proxy.generation import Generation, is_whole
from proxy.http import ClientConnection, ClientGone, Headers, Message, Send
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
    generation: Generation, framing: Framing, send: Send, client: ClientConnection, header_hold: float
) -> None:
    """Stream a generation.

    The status line waits for the engine's first answer, for at most `header_hold` seconds, so that an
    engine's refusal is an HTTP error and not a broken stream.

    Raises:
        EwError: the generation failed before anything was sent.
        ClientGone: nobody is there any more.
    """
    status = StatusLine(send, lambda: _start(framing, generation), header_hold)
    with client.watch(lambda: generation.cancel("client_gone")):
        try:
            text = await generation.first_text()
            if not status.begun:
                refuse_empty_end(generation)
        except EwError as error:
            if not status.begun:
                raise
            await status.complete()
            await _send_last(send, _failure(framing, generation, error))
        else:
            await _write(generation, text, framing, status, send, client)
        finally:
            status.close()
            generation.close()


class StatusLine:
    """Goes out with the first text, or alone where that takes longer than `hold` seconds."""

    def __init__(self, send: Send, message: Callable[[], Message], hold: float) -> None:
        self._send = send
        self._message = message
        self._early: asyncio.Future[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(hold, self._send_early)
        self.begun = False

    async def complete(self) -> None:
        """Send it, or wait until it has been sent."""
        self._timer.cancel()
        if self._early is not None:
            await self._early
        else:
            self.begun = True
            await self._send(self._message())

    def close(self) -> None:
        self._timer.cancel()

    def _send_early(self) -> None:
        self.begun = True
        self._early = asyncio.ensure_future(self._send(self._message()))


async def _write(
    generation: Generation,
    text: str,
    framing: Framing,
    status: StatusLine,
    send: Send,
    client: ClientConnection,
) -> None:
    delta = framing.delta
    frame = (lambda text: b"".join(map(delta, text))) if generation.pseudo else delta
    with client.together():
        await status.complete()
        client.write_part(framing.begin() + (frame(text) if text else b""))
    timings = generation.timings
    timings.added += perf_counter() - generation.received_at + timings.sent - timings.arrived
    relay = Relay(generation, frame, client)
    try:
        await relay.run()
        end = _end(framing, generation)
    except EwError as error:
        end = _failure(framing, generation, error)
    await _send_last(send, relay.rest + end)


def _end(framing: Framing, generation: Generation) -> bytes:
    if generation.cause == "client_gone":
        raise ClientGone
    if is_whole(generation):
        return framing.end(generation)
    raise early_end(generation)


def _failure(framing: Framing, generation: Generation, error: EwError) -> bytes:
    """The last event of a stream that broke after its status line had said 200."""
    metrics.of_model(generation.request.model.model_id).stream_broke(error.code)
    return framing.failure(generation, error)


async def whole_text(generation: Generation, client: ClientConnection) -> str:
    """The text of a request that does not stream; the client is watched all the same.

    Raises:
        EwError: the generation failed, or was stopped before its first token.
        ClientGone: nobody is there any more.
    """
    with client.watch(lambda: generation.cancel("client_gone")):
        parts = [text async for text in generation.texts()]
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


def _start(framing: Framing, generation: Generation) -> Message:
    headers = [(b"content-type", framing.content_type), *NO_BUFFERING]
    if generation.pseudo:
        headers.append(PSEUDO)
    return {"type": "http.response.start", "status": 200, "headers": headers}


async def _send_last(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})
