"""One tritonserver: generations of `M-tensorrt_llm`, token ids in, and the control calls around them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import orjson

from common.errors import EngineError, EwError, ServiceError, UsageError
from proxy.chunks import Deltas, StreamTraits
from proxy.engine_request import EngineRequest
from proxy.upstream import ConnectionLost, Exchange, Pool

ENGINE_SUFFIX = "-tensorrt_llm"
# tritonserver up to 24.10 answers 400 to every error of a model, so its kind is read from the bridge's words.
AWAY = "try again"
FAILED = ("send it again", "failed on this request")
EVENT_END = b"\n\n"
EVENT_START = len(b"data: ")
STOP_AGAIN_SECONDS = 0.05
DELTA_BACKEND = "tensorrtllm"  # NVIDIA's and the bridge
WHOLE_SECONDS = 0.01  # how long the end of an answer that came in one piece may take to follow it
END_SECONDS = 1.0  # how long an engine may take from its end id to the end of its answer


class TokenStream:
    """The tokens of one request as they arrive."""

    def __init__(self, client: TritonClient, request: EngineRequest, deltas: Deltas | None = None) -> None:
        self._client = client
        self._request = request
        self._deltas = deltas
        self._exchange: Exchange | None = None
        self._rest = b""
        self._closed = False
        self.received_at = 0.0
        self.log_probs: list[float] = []

    async def open(self, headers: bytes = b"") -> None:
        """Send the request.

        Raises:
            ServiceError: tritonserver cannot be reached.
        """
        path = model_path(self._request.model_id) + "/generate_stream"
        self._exchange = await self._client.pool.open("POST", path, self._request.body(), headers=headers)
        if self._closed:
            self._abandon()

    @property
    def answered(self) -> bool:
        """Has anything been taken?"""
        return self.received_at > 0.0

    @property
    def reused(self) -> bool:
        """Was the request sent on a connection that had been kept open?"""
        return self._exchange is not None and self._exchange.reused

    async def read(self) -> list[int] | None:
        """The token ids that have arrived since the last call; None at the end.

        Raises:
            EngineError, ServiceError: the engine reported an error, or the connection broke.
        """
        exchange = self._exchange
        if exchange is None:
            return None
        while True:
            if exchange.chunks and exchange.status != 200:
                raise await _http_error(exchange)
            ids = self.take()
            if ids or ids is None:
                return ids
            await exchange.change()

    def take(self) -> list[int] | None:
        """`read` without waiting, after its first call: an empty list where nothing has arrived."""
        exchange = self._exchange
        if exchange is None:
            return None
        data = exchange.take()
        if data:
            self.received_at = exchange.received_at
            return self._parse(data)
        if data is None:
            return []
        self._check_end()
        return self._rest_of_chunks() or None

    def ready(self) -> bool:
        """Whether `take` has something."""
        return self._exchange is None or self._exchange.ready()

    def change(self) -> asyncio.Future[None]:
        """Done when `take` has something; ask `ready` first."""
        assert self._exchange is not None
        return self._exchange.change()

    def listen(self, listener: Callable[[], None] | None) -> Callable[[], bool]:
        """Call `listener` whenever `take` has something (None: no more); returns a direct `ready`."""
        exchange = self._exchange
        if exchange is None:
            return self.ready
        exchange.listener = listener
        return exchange.ready

    async def came_whole(self) -> bool:
        """After the first read: was that the whole answer, in one response of several tokens?"""
        exchange = self._exchange
        if exchange is None or self._deltas is None or self._deltas.chunks > 1:
            return False
        with contextlib.suppress(asyncio.TimeoutError):
            while not (exchange.done or exchange.chunks):
                await asyncio.wait_for(exchange.change(), WHOLE_SECONDS)
        return exchange.done and not exchange.chunks

    def cancel(self) -> None:
        """Stop the engine's work at once, whatever phase it is in; a reader sees the end."""
        if self._closed:
            return
        self._closed = True
        self._abandon()

    def end_soon(self) -> None:
        """The engine is at its end id: let it finish by itself, which keeps the connection."""
        if not self._closed:
            self._closed = True
            self._client.pool.spawn(self._drain())

    async def _drain(self) -> None:
        exchange = self._exchange
        assert exchange is not None
        try:
            while await asyncio.wait_for(exchange.read(), END_SECONDS):
                pass
        except (EwError, asyncio.TimeoutError):
            self._abandon()

    def _abandon(self) -> None:
        """Two signals: the explicit stop works where no write is due; the closed connection where the
        stop would overtake the request."""
        if self._exchange is None or self._exchange.done:
            return
        self._exchange.abort()
        self._client.pool.spawn(self._client.stop(self._request, again=not self.answered))

    def _check_end(self) -> None:
        if self._closed:
            return
        if self._rest.strip():
            raise ConnectionLost("tritonserver ended its answer in the middle of an event.")
        if not self.answered:
            raise EngineError("tritonserver ended its answer without a token.")

    def _parse(self, data: bytes) -> list[int]:
        """The token ids of all whole events; what is left waits for more."""
        if self._rest:
            data = self._rest + data
        ids: list[int] = []
        start, any_style = 0, self._deltas is not None
        while (end := data.find(EVENT_END, start)) >= 0:
            event = orjson.loads(data[start + EVENT_START : end])
            token_id = event.get("output_ids")
            if token_id.__class__ is not int or any_style or "output_log_probs" in event:
                self._event(event, ids)
            else:
                ids.append(token_id)
            start = end + 2
        self._rest = data[start:]
        return ids

    def _event(self, event: dict[str, Any], ids: list[int]) -> None:
        if self._deltas is not None:
            self._event_of_any_style(event, ids, self._deltas)
            return
        fresh = event.get("output_ids")
        if fresh.__class__ is list:
            ids += fresh
        elif fresh is not None:
            ids.append(fresh)
        elif "error" in event:
            raise engine_error(str(event["error"]))
        log_probs = event.get("output_log_probs")
        if log_probs is not None:
            self.log_probs += log_probs if isinstance(log_probs, list) else [log_probs]

    def _event_of_any_style(self, event: dict[str, Any], ids: list[int], deltas: Deltas) -> None:
        if "error" in event:
            raise engine_error(str(event["error"]))
        fresh, log_probs = deltas.push(_as_list(event, "output_ids"), _as_list(event, "output_log_probs"))
        ids += fresh
        self.log_probs += log_probs

    def _rest_of_chunks(self) -> list[int]:
        """What a chunk of doubtful style held back, once."""
        deltas, self._deltas = self._deltas, None
        ids, log_probs = deltas.rest() if deltas is not None else ([], [])
        self.log_probs += log_probs
        return ids


class TritonClient:
    """One tritonserver."""

    def __init__(self, url: str, header: bytes = b"") -> None:
        self.pool = Pool(url, header)

    async def live(self) -> bool:
        return await self._answers("/v2/health/live")

    async def model_ready(self, model_id: str) -> bool:
        return await self._answers(model_path(model_id) + "/ready")

    async def index(self) -> dict[str, dict[str, str]]:
        """Model name -> {"state", "reason"}; models that were never loaded have no state.

        Raises:
            ServiceError: tritonserver does not answer, or with an error.
        """
        status, body = await self.pool.request("POST", "/v2/repository/index", b"{}")
        if status != 200:
            raise ServiceError(f"tritonserver answered {status} to the repository index.")
        return {entry["name"]: entry for entry in orjson.loads(body)}

    async def traits(self, model_id: str) -> StreamTraits:
        """Whether the model can send more than one response (is decoupled), and in which style.

        Raises:
            ServiceError: tritonserver does not answer, or with an error.
        """
        status, body = await self.pool.request("GET", model_path(model_id) + "/config")
        if status != 200:
            raise _not_ready(_message(body))
        config = orjson.loads(body)
        decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled", False))
        return StreamTraits(decoupled, "delta" if config.get("backend") == DELTA_BACKEND else None)

    async def load(self, name: str, *, timeout: float = 600.0) -> None:
        await self._control(name, "load", timeout)

    async def unload(self, name: str, *, timeout: float = 60.0) -> None:
        await self._control(name, "unload", timeout)

    async def stop(self, request: EngineRequest, *, again: bool) -> None:
        """Tell the engine to drop a request; `again` repeats it for a request that is still on its way.

        The bridge remembers a stop that comes too early; NVIDIA's backend needs the repetition.
        """
        body = orjson.dumps(
            {
                "id": request.request_id,
                "stop": True,
                "stop_may_be_early": True,
                "input_ids": request.prompt_ids[:1],
                "input_lengths": 1,
                "request_output_len": 1,
            }
        )
        path = model_path(request.model_id) + "/generate"
        for attempt in range(2 if again else 1):
            if attempt:
                await asyncio.sleep(STOP_AGAIN_SECONDS)
            try:
                await self.pool.request("POST", path, body)
            except (EwError, asyncio.TimeoutError):
                return  # the server is gone, and its work with it

    async def _answers(self, path: str) -> bool:
        try:
            status, _ = await self.pool.request("GET", path)
        except (EwError, asyncio.TimeoutError):
            return False
        return status == 200

    async def _control(self, name: str, verb: str, timeout: float) -> None:
        path = f"/v2/repository/models/{quote(name)}/{verb}"
        status, body = await self.pool.request("POST", path, b"{}", timeout=timeout)
        if status != 200:
            raise ServiceError(
                f"tritonserver could not {verb} {name}.",
                why=_message(body),
                hint="Loading at run time needs --model-control-mode=explicit, which ./ew start uses.",
                code=f"{verb}_failed",
            )


class EngineRefused(UsageError):
    """The engine does not support something in the request, or finds it invalid."""

    default_code = "refused_by_engine"


def model_path(model_id: str) -> str:
    return f"/v2/models/{quote(model_id)}{ENGINE_SUFFIX}"


def _not_ready(message: str) -> ServiceError:
    return ServiceError(
        "The model is not ready on tritonserver.",
        why=message,
        hint="./ew status shows its state: while it loads, try again soon; if it was stopped, start it again "
        "with ./ew start --model.",
        code="model_not_ready",
    )


def _as_list(event: dict[str, Any], name: str) -> list[Any]:
    """An output tensor; tritonserver writes a single value without brackets."""
    value = event.get(name, [])
    return value if isinstance(value, list) else [value]


def engine_error(message: str) -> EngineError:
    return EngineError("The engine failed this request.", why=message, hint="./ew logs worker shows more.")


async def _http_error(exchange: Exchange) -> EwError:
    """tritonserver's own status before the first token."""
    data = b""
    while more := await exchange.read():
        data += more
    message = _message(data)
    told = message.lower()
    if exchange.status in (404, 503) or AWAY in told:
        return _not_ready(message)
    if exchange.status in (400, 501) and not any(phrase in told for phrase in FAILED):
        return EngineRefused(
            "The engine refuses this request.", why=message, hint="Leave out or change what it names."
        )
    return engine_error(message)


def _message(body: bytes) -> str:
    try:  # generate_stream writes even these errors as an event
        return str(orjson.loads(body.strip().removeprefix(b"data: "))["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
