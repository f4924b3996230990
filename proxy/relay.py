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
    """Writes what is left of a generation after its first text; `run` it once.

    Text that the end has come with is left in `rest`, so that they can go out together.
    """

    def __init__(
        self, generation: Generation, frame: Callable[[str], bytes], client: ClientConnection
    ) -> None:
        self._generation = generation
        self._frame = frame
        self._client = client
        self._busy = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.rest = b""

    async def run(self) -> None:
        """Until the generation has ended.

        Raises:
            EngineError, ServiceError: the engine failed; what came before is incomplete.
        """
        self._more = self._generation.listen(self._wake)
        self._client.on_writable = self._go_on
        try:
            self._go_on()
            await self._done
        finally:
            self._generation.listen(None)
            self._client.on_writable = None

    def _go_on(self) -> None:
        if self._generation.ended or self._more():
            self._wake()

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
            if not client.writable:
                return
            text = generation.take_text()
            if text:
                self.rest += self._frame(text)
            if not (generation.ended or self._more()):
                self._write_rest()
                return
        self._done.set_result(None)

    def _write_rest(self) -> None:
        if self.rest:
            self._client.write_part(self.rest)
            self.rest = b""
            timings = self._generation.timings
            timings.added += perf_counter() - timings.answers[-1]
