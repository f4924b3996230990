"""A scripted tritonserver and the real proxy in front of it, on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from proxy.direct import DirectProtocol
from proxy.gateway import Gateway
from proxy.keys import KeyStore
from proxy.service import Service
from proxy.settings import Settings
from tests.proxy.fake_triton import FakeTriton

MODEL = "m"


@dataclass
class Stack:
    """A proxy in front of a scripted tritonserver."""

    url: str
    key: str
    triton: FakeTriton
    service: Service
    client: aiohttp.ClientSession

    def script(self, text: str, **fields: Any) -> list[int]:
        """Make the engine answer with `text`; returns its ids."""
        ids: list[int] = self.service.registry.get(MODEL).tokenizer.encode(text).ids
        self.triton.script.tokens = ids
        for name, value in fields.items():
            setattr(self.triton.script, name, value)
        return ids

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(
            self.url + path, data=data, headers={"X-API-Key": self.key, **headers}
        ) as answer:
            return answer.status, answer.headers, await answer.read()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(self.url + path, headers={"X-API-Key": self.key}) as answer:
            return answer.status, await answer.json()

    async def events(self, **fields: Any) -> list[Any]:
        """All events of a stream; "[DONE]" stays a string."""
        body = {"modelId": MODEL, "prompt": "hi", **fields}
        status, _, data = await self.post("/api/v1/inference/stream", body)
        assert status == 200, data
        return parse_events(data)


def parse_events(data: bytes) -> list[Any]:
    assert data.endswith(b"\n\n")
    events = [event.removeprefix("data: ") for event in data.decode().split("\n\n")[:-1]]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


def text_of(events: list[Any]) -> str:
    return "".join(event["text"] for event in events if event != "[DONE]")


@asynccontextmanager
async def running_stack(package: Path, folder: Path, options: dict[str, Any]) -> AsyncIterator[Stack]:
    triton = FakeTriton({f"{MODEL}-tensorrt_llm": "READY"})
    await triton.start()
    model = {"engine": "cpu", "model_path": str(package), **options.pop("model", {})}
    config = folder / "config.json"
    config.write_text(json.dumps({"models": {MODEL: model}}))
    keys = folder / "keys.json"
    keys.unlink(missing_ok=True)
    key = KeyStore(keys).add("test", "admin")
    service = Service(Settings(config=str(config), triton=(triton.url,), keys=str(keys), **options))
    server, task, url = await _serve(Gateway(service))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        yield Stack(url, key, triton, service, client)
    server.should_exit = True
    await task
    await triton.stop()


async def _serve(app: Any) -> tuple[uvicorn.Server, asyncio.Task[None], str]:
    config = uvicorn.Config(
        app,
        port=0,
        http=DirectProtocol,
        lifespan="on",
        log_config=None,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server._serve())  # without its signal handlers
    while not server.started:
        await asyncio.sleep(0.01)
        if task.done():
            task.result()
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, task, f"http://127.0.0.1:{port}"
