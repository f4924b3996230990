"""A tritonserver of the tests: speaks generate_stream, does what a script says, records what it sees."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

HEAD = "HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\n"


@dataclass
class Script:
    """What the next generations do. Times in seconds.

    `tokens` are sent in groups of `group`; `fail_after` sends an error event after so many groups,
    `kill_after` closes the connection. `status` other than 200 is answered at once with `error`.
    With `stays_ready` an unload is answered and not done.
    """

    tokens: list[int] = field(default_factory=list)
    group: int = 1
    pace: float = 0.0
    prefill: float = 0.0
    fail_after: int | None = None
    kill_after: int | None = None
    status: int = 200
    error: str = "the engine said no"
    decoupled: bool = True
    end_lag: float = 0.0
    log_prob: float | None = None
    stays_ready: bool = False
    backend: str = "tensorrtllm"
    cumulative: bool = False


@dataclass
class FakeTriton:
    """One server on a free port."""

    models: dict[str, str]
    script: Script = field(default_factory=Script)
    requests: list[dict[str, Any]] = field(default_factory=list)
    stops: list[tuple[str, float]] = field(default_factory=list)
    disconnects: list[tuple[str, float]] = field(default_factory=list)
    running: dict[str, asyncio.Event] = field(default_factory=dict)
    controls: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Die as a killed process does: every connection breaks."""
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                method, path, headers, body = await _read_request(reader)
                self.headers.append(headers)
                await self._answer(method, path, body, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(
        self, method: str, path: str, body: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if path.endswith("/generate_stream"):
            await self._generate(body, reader, writer)
        elif path.endswith("/generate"):
            self.stops.append((body["id"], perf_counter()))
            if body["id"] in self.running:
                self.running[body["id"]].set()
            await _plain(writer, 200, {})
        elif path == "/v2/repository/index":
            await _plain(writer, 200, [{"name": n, "state": s} for n, s in self.models.items()])
        elif path.startswith("/v2/repository/models/"):
            name, verb = path.split("/")[-2:]
            self.controls.append((verb, name))
            ready = verb == "load" or self.script.stays_ready
            self.models[name] = "READY" if ready else ""
            await _plain(writer, 200, {})
        elif path.endswith("/config"):
            policy = {"decoupled": self.script.decoupled}
            config = {"backend": self.script.backend, "model_transaction_policy": policy}
            await _plain(writer, 200, config)
        else:
            await _plain(writer, 200 if path.startswith("/v2/") else 404, {})

    async def _generate(self, body: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.script
        self.requests.append(body)
        self.running[body["id"]] = over = asyncio.Event()
        watcher = asyncio.ensure_future(self._watch(body["id"], reader))
        try:
            if script.status != 200:
                await _plain(writer, script.status, {"error": script.error}, b"data: %s\n\n")
                return
            await self._emit(script, body, writer, over)
        except ConnectionError:
            if script.kill_after is None:
                self.disconnects.append((body["id"], perf_counter()))
            raise
        finally:
            watcher.cancel()
            await asyncio.wait((watcher,))
            del self.running[body["id"]]

    async def _watch(self, request_id: str, reader: asyncio.StreamReader) -> None:
        data = b""
        with suppress(ConnectionError):
            data = await reader.read(1)
        if not data:
            self.disconnects.append((request_id, perf_counter()))
            self.running[request_id].set()

    async def _emit(
        self, script: Script, body: Any, writer: asyncio.StreamWriter, over: asyncio.Event
    ) -> None:
        await _pause(script.prefill, over)
        kind = "text/event-stream; charset=utf-8"
        writer.write((HEAD.format(status=200, kind=kind) + "Transfer-Encoding: chunked\r\n\r\n").encode())
        tokens = script.tokens[: body["request_output_len"]]
        size = script.group if body["streaming"] else max(1, len(tokens))
        starts = range(0, len(tokens), size)
        groups = [tokens[0 if script.cumulative else at : at + size] for at in starts]
        for index, group in enumerate(groups):
            if script.fail_after == index:
                _event(writer, {"error": script.error})
                break
            if script.kill_after == index:
                writer.transport.abort()
                raise ConnectionError
            _event(writer, _response(body, group, script.log_prob))
            await writer.drain()
            if await _pause(script.pace, over):
                break
        await _pause(script.end_lag, over)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _pause(seconds: float, over: asyncio.Event) -> bool:
    """Wait, but no longer than the request lives; True when it was stopped."""
    if not seconds:
        await asyncio.sleep(0)
    else:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(over.wait(), seconds)
    return over.is_set()


def _response(body: Any, group: list[int], log_prob: float | None) -> dict[str, Any]:
    ids: Any = group[0] if len(group) == 1 else group  # tritonserver unwraps a single value
    log_probs = {} if log_prob is None else {"output_log_probs": [log_prob] * len(group)}
    return {
        **log_probs,
        "id": body["id"],
        "model_name": "m-tensorrt_llm",
        "model_version": "1",
        "output_ids": ids,
        "sequence_length": len(group),
    }


def _event(writer: asyncio.StreamWriter, document: Any) -> None:
    data = b"data: " + json.dumps(document).encode() + b"\n\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


async def _plain(writer: asyncio.StreamWriter, status: int, document: Any, form: bytes = b"%s") -> None:
    data = form % json.dumps(document).encode()
    head = HEAD.format(status=status, kind="application/json") + f"Content-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    data = await reader.readexactly(int(headers.get("content-length", 0)))
    return method, path, headers, json.loads(data) if data else None
