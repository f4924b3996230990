"""A proxy that answers from a script: for what a client does when the real one would be in the way."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from runtime.client import Endpoint

KEY = "ew-test-key"
RECEIPT = {"finishReason": "stop", "timings": {"proxyMs": 0.5}}


@dataclass
class Script:
    """What it does: `pieces` are streamed; `end` is how a stream ends: done, error or cut.

    After `answered` requests it leaves all others waiting until `over`.
    """

    pieces: list[str] = field(default_factory=lambda: ["Par", "is"])
    end: str = "done"
    status: int = 200
    models: list[str] = field(default_factory=lambda: ["tiny"])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    answered: float = math.inf
    over: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    script: Script

    def do_GET(self) -> None:
        self._send(200, {"models": [{"id": name} for name in self.script.models]})

    def do_POST(self) -> None:
        script = self.script
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        script.bodies.append(body)
        script.keys.append(self.headers["X-API-Key"])
        if len(script.bodies) > script.answered:
            script.over.wait()
        elif script.status != 200:
            self._send(script.status, {"error": {"message": "No.", "hint": "Ask later.", "code": "busy"}})
        elif self.path.endswith("/stream"):
            self._stream(body)
        else:
            self._send(200, {"text": "".join(script.pieces), **self._receipt(body)})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        for piece in self.script.pieces:
            self._event({"text": piece})
        if self.script.end == "error":
            self._event({"text": "", "error": {"message": "The engine failed.", "code": "engine"}})
        elif self.script.end == "done":
            self._event({"text": "", **self._receipt(body)})
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, fields: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(fields)}\n\n".encode())

    def _receipt(self, body: dict[str, Any]) -> dict[str, Any]:
        words = len(body.get("prompt", "").split())
        tokens = body.get("maxTokens", len(self.script.pieces))
        return {**RECEIPT, "usage": {"promptTokens": 2 * words, "completionTokens": tokens}}

    def _send(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_proxy(script: Script) -> Iterator[Endpoint]:
    """Runs it on a free port."""
    handler = type("Scripted", (Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Endpoint("http", "127.0.0.1", server.server_address[1], KEY)
    finally:
        script.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
