from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.relay import wait_ready

LOADING_SECONDS = 0.5
asked: list[int] = []


class Loading(BaseHTTPRequestHandler):
    """A server that answers at once, and is ready only later."""

    began = 0.0

    def do_GET(self) -> None:
        asked.append(200 if time.monotonic() > self.began + LOADING_SECONDS else 400)
        self.send_response(asked[-1])
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    asked.clear()
    Loading.began = time.monotonic()
    with ThreadingHTTPServer(("127.0.0.1", 0), Loading) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_server_that_is_not_ready_is_not_asked_without_pause(port: int) -> None:
    wait_ready(port)
    assert asked[-1] == 200
    assert 2 <= len(asked) <= 2 + LOADING_SECONDS / 0.1
