"""Which tritonserver serves which model."""

from __future__ import annotations

import asyncio
import logging

from common.errors import EwError, ServiceError
from proxy.chunks import StreamTraits
from proxy.routes import Route
from proxy.triton import ENGINE_SUFFIX, TritonClient

log = logging.getLogger("proxy.router")

REFRESH_SECONDS = 2.0


class Router:
    """The servers and, for each, the states of its models as of the last look.

    `header` is a line of every request to them; see `proxy.restricted`.
    """

    def __init__(self, urls: tuple[str, ...], header: bytes = b"") -> None:
        self._header = header
        self.clients = tuple(TritonClient(url, header) for url in urls)
        self._states: dict[TritonClient, dict[str, str]] = {client: {} for client in self.clients}
        self._traits: dict[tuple[TritonClient, str], StreamTraits] = {}
        self._owned: dict[str, frozenset[str]] = {}  # by url, the Triton models that are looked at there

    async def use(self, routes: tuple[Route, ...]) -> None:
        """Send requests to these servers from now on; each is asked for its own models only.

        Servers may share a repository: each lists all models of it, also those that another one serves.
        """
        known = {client.pool.url: client for client in self.clients}
        self._owned = {
            route.url: frozenset(name for model_id in route.models for name in _family(model_id))
            for route in routes
        }
        self.clients = tuple(
            known.get(route.url) or TritonClient(route.url, self._header) for route in routes
        )
        self._states = {client: self._states.get(client, {}) for client in self.clients}
        self._traits = {key: traits for key, traits in self._traits.items() if key[0] in self._states}
        gone = [client for client in known.values() if client not in self.clients]
        await asyncio.gather(*(client.pool.close() for client in gone))

    async def refresh(self) -> None:
        """Ask every server for its models' states; one that does not answer has none."""
        await asyncio.gather(*(self._refresh(client) for client in self.clients))

    def state(self, model_id: str) -> str:
        """READY, LOADING, UNLOADING, FAILED, UNLOADED, or UNREACHABLE when no server answers."""
        states = [
            states.get(model_id + ENGINE_SUFFIX)
            for client, states in self._states.items()
            if states and self._may_have(client, model_id)
        ]
        if not states:
            return "UNREACHABLE"
        known = [state for state in states if state is not None]
        return "READY" if "READY" in known else (known[0] if known else "UNLOADED")

    def client_for(self, model_id: str) -> TritonClient:
        """The server to send a request to.

        Raises:
            ServiceError: no server has the model ready.
        """
        if len(self.clients) == 1:
            return self.clients[0]  # its own answer is fresher than the last look
        for client, states in self._states.items():
            if states.get(model_id + ENGINE_SUFFIX) == "READY":
                return client
        raise ServiceError(
            f"No tritonserver has {model_id} ready.",
            hint="./ew status shows which models are loaded.",
            code="model_not_ready",
        )

    async def traits(self, client: TritonClient, model_id: str) -> StreamTraits:
        """How the model answers; asked once, and again after it was loaded anew."""
        known = self._traits.get((client, model_id))
        if known is None:
            known = self._traits[client, model_id] = await client.traits(model_id)
        return known

    def home_of(self, model_id: str) -> TritonClient:
        """The server whose repository holds the model, loaded or not.

        Raises:
            ServiceError: no server knows it.
        """
        for client, states in self._states.items():
            if model_id in states or model_id + ENGINE_SUFFIX in states:
                return client
        raise ServiceError(f"No tritonserver has {model_id} in its repository.", hint="./ew render")

    async def set_loaded(self, model_id: str, loaded: bool) -> None:
        """Load or unload the model, with its ensemble and the ensemble's other steps.

        Raises:
            ServiceError: no server knows the model, or the server refuses.
        """
        client = self.home_of(model_id)
        known = self._states[client]
        names = [name for name in _family(model_id) if name in known]
        for name in names if loaded else reversed(names):
            await (client.load(name) if loaded else client.unload(name))

    async def close(self) -> None:
        await asyncio.gather(*(client.pool.close() for client in self.clients))

    def _may_have(self, client: TritonClient, model_id: str) -> bool:
        owned = self._owned.get(client.pool.url)
        return owned is None or model_id in owned

    async def _refresh(self, client: TritonClient) -> None:
        try:
            index = await client.index()
        except (EwError, asyncio.TimeoutError) as error:
            if self._states.get(client):
                log.warning("tritonserver %s does not answer: %s", client.pool.url, error)
            index = {}
        if client not in self._states:  # taken away meanwhile
            return
        owned = self._owned.get(client.pool.url)
        self._states[client] = {
            name: _state(entry) for name, entry in index.items() if owned is None or name in owned
        }
        for known, model_id in tuple(self._traits):
            if known is client and self.state(model_id) != "READY":
                del self._traits[known, model_id]


def _family(model_id: str) -> tuple[str, ...]:
    """The models of one id in loading order: an ensemble needs its steps first."""
    steps = ("-preprocessing", ENGINE_SUFFIX, "-postprocessing")
    return (*(model_id + step for step in steps), model_id)


def _state(entry: dict[str, str]) -> str:
    """Triton's states; it calls both a failed and an unloaded model UNAVAILABLE."""
    state = entry.get("state", "")
    if state == "UNAVAILABLE":
        return "UNLOADED" if entry.get("reason") == "unloaded" else "FAILED"
    return state or "UNLOADED"
