"""Several generations answered as one: the choices of `n`, or the prompts of a list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from common.errors import EwError
from proxy import metrics
from proxy.generation import Cause, Generation, is_whole
from proxy.http import ClientConnection, ClientGone, Send
from proxy.openai_api.framing import ChoiceWriter
from proxy.streaming import NO_BUFFERING, PSEUDO, early_end, refuse_empty_end

EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")
QUEUED_PIECES = 256


class Left(EwError):
    """Put in the place of a text when the client has gone."""


async def texts_of_all(generations: list[Generation], client: ClientConnection) -> list[str]:
    """All texts. One failure stops the others.

    Raises:
        EwError: a generation failed, or was stopped before its first token.
        ClientGone: nobody is there any more.
    """
    with client.watch(lambda: _cancel(generations, "client_gone")):
        try:
            texts = await asyncio.gather(*(_text(generation) for generation in generations))
        except EwError:
            _cancel(generations, "sibling_failed")
            raise
    for generation in generations:
        refuse_empty_end(generation)
    return texts


async def stream_many(
    choices: list[tuple[Generation, ChoiceWriter]],
    send: Send,
    client: ClientConnection,
    end: Callable[[], bytes],
    failure: Callable[[EwError], bytes],
    header_hold: float,
) -> None:
    """Stream several choices in the order in which their texts come.

    The status line waits for the first text, for at most `header_hold` seconds.

    Raises:
        EwError: a generation failed before anything was sent.
        ClientGone: nobody is there any more.
    """
    generations = [generation for generation, _ in choices]
    queue: asyncio.Queue[bytes | EwError | None] = asyncio.Queue(QUEUED_PIECES)
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_produce(generation, writer, queue)) for generation, writer in choices]

    def broken(error: EwError) -> bytes:
        metrics.of_model(generations[0].request.model.model_id).stream_broke(error.code)
        return failure(error)

    def begin() -> None:
        if queue.empty():
            queue.put_nowait(b"")  # no text, but a piece: the status line goes before it

    hold = loop.call_later(header_hold, begin)
    try:
        with client.watch(lambda: _cancel(generations, "client_gone")):
            await _consume(queue, generations, send, end, broken)
    finally:
        hold.cancel()
        _cancel(generations, "sibling_failed")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _produce(
    generation: Generation, writer: ChoiceWriter, queue: asyncio.Queue[bytes | EwError | None]
) -> None:
    try:
        opening = writer.begin()
        async for text in generation.texts():
            await queue.put(opening + writer.delta(text))
            opening = b""
        if generation.cause == "client_gone":
            await queue.put(Left("The client has gone."))
        else:
            await queue.put(opening + writer.end() if is_whole(generation) else early_end(generation))
    except EwError as error:
        await queue.put(error)
    await queue.put(None)


async def _consume(
    queue: asyncio.Queue[bytes | EwError | None],
    generations: list[Generation],
    send: Send,
    end: Callable[[], bytes],
    failure: Callable[[EwError], bytes],
) -> None:
    started, running = False, len(generations)
    while running:
        piece = await queue.get()
        if piece is None:
            running -= 1
            continue
        if isinstance(piece, EwError):
            if isinstance(piece, Left):
                raise ClientGone
            if not started:
                raise piece
            await _send(send, failure(piece), last=True)
            return
        if not started:
            started = True
            pseudo = [PSEUDO] if any(generation.pseudo for generation in generations) else []
            headers = [EVENT_STREAM, *NO_BUFFERING, *pseudo]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send(send, piece)
    await _send(send, end(), last=True)


async def _text(generation: Generation) -> str:
    return "".join([text async for text in generation.texts()])


def _cancel(generations: list[Generation], cause: Cause) -> None:
    for generation in generations:
        generation.cancel(cause)


async def _send(send: Send, body: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})
