"""From the engine's connection to the client's, within the callback that the tokens come by.

No task is woken and nothing is queued for a token: `take`, decode, frame, write. While the client does not
read, tokens stay with the engine's connection, which stops reading in turn (upstream.HIGH_WATER).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

from proxy.generation import Generation
from proxy.http import ClientConnection


class Relay:
    """Writes what is left of a generation after its first text; `run` it once."""

    def __init__(
        self, generation: Generation, delta: Callable[[str], bytes], client: ClientConnection
    ) -> None:
        self._generation = generation
        self._frame = (lambda text: b"".join(map(delta, text))) if generation.pseudo else delta
        self._client = client
        self._busy = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready = generation.listen(self._wake)

    async def run(self) -> None:
        """Until the generation has ended.

        Raises:
            EngineError, ServiceError: the engine failed; what came before is incomplete.
        """
        self._client.on_writable = self._wake
        try:
            self._wake()
            await self._done
        finally:
            self._generation.listen(None)
            self._client.on_writable = None

    def _wake(self) -> None:
        if self._busy or self._done.done():
            return
        self._busy = True  # a stop string ends the engine's answer, which calls this again
        try:
            self._pass_on()
        except Exception as error:  # it belongs to the request, and this is the connection's callback
            self._done.set_exception(error)
        finally:
            self._busy = False

    def _pass_on(self) -> None:
        generation, client = self._generation, self._client
        while not generation.ended:
            if not (client.writable and self._ready()):
                return
            text = generation.take_text()
            if text:
                client.write_part(self._frame(text))
                generation.timings.added += perf_counter() - generation.timings.last
        self._done.set_result(None)
