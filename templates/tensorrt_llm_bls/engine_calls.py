"""Calls of the engine model from BLS, over tritonserver's own HTTP endpoint.

Not over the Python backend's `exec(decoupled=True)`: in Triton 2.51 two such calls at a time can stop the
process for good (the thread that opens a response iterator holds the GIL and waits for the iterators' lock,
the thread that delivers responses holds that lock and waits for the GIL). HTTP also shows a lost client to
the engine at once.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

STOP = {"stop": True, "input_ids": [1], "input_lengths": 1, "request_output_len": 1}


class EngineError(Exception):
    """The engine refused or failed a request; the text is for the client."""


class EngineCalls:
    """All calls in flight to one engine model. Thread-safe."""

    def __init__(self, url: str, model: str) -> None:
        self._address = urlsplit(url).netloc
        self._path = f"/v2/models/{model}"
        self._lock = threading.Lock()
        self._live: dict[str, EngineCall] = {}

    @contextmanager
    def open(self, request_id: str, sender: Any, inputs: dict[str, Any]) -> Iterator[EngineCall]:
        """A call on behalf of a client's request; it is stopped if the body is left early."""
        with self._lock:
            inner_id = self._free_id(request_id)
            call = self._live[inner_id] = EngineCall(self._address, self._path, inner_id, sender, inputs)
        try:
            yield call
        finally:
            call.close()
            with self._lock:
                del self._live[inner_id]

    def stop_cancelled(self) -> None:
        with self._lock:
            calls = list(self._live.values())
        for call in calls:
            if call.is_cancelled():
                call.stop()

    def _free_id(self, wanted: str) -> str:
        """The client's id, so that the request has one id everywhere; another where it is missing or in use.

        The engine stops by id: two live requests must not share one.
        """
        return wanted if wanted and wanted not in self._live else uuid.uuid4().hex


class EngineCall:
    """One generation. `stop` may be called from any thread, and again."""

    def __init__(self, address: str, path: str, request_id: str, sender: Any, inputs: dict[str, Any]) -> None:
        self._address = address
        self._path = path
        self._request_id = request_id
        self._sender = sender
        self._inputs = inputs
        self._stopped = threading.Event()
        self._ended = False
        self._closed = False
        self._sender_lock = threading.Lock()

    def is_cancelled(self) -> bool:
        """Whether the client has gone. Never asked after the end: Triton would crash on a finished sender."""
        with self._sender_lock:
            return not self._closed and bool(self._sender.is_cancelled())

    def responses(self) -> Iterator[dict[str, Any]]:
        """The engine's responses, until the generation ends.

        Raises:
            EngineError: the engine refused or failed.
        """
        with closing(http.client.HTTPConnection(self._address)) as connection:
            self._post(connection, "generate_stream", self._inputs)
            reply = connection.getresponse()
            if reply.status != http.client.OK:
                raise EngineError(_error_text(reply.read()))
            for line in reply:
                if line.startswith(b"data:"):
                    document = json.loads(line[5:])
                    if "error" in document:
                        raise EngineError(str(document["error"]))
                    yield document
        self._ended = True

    def stop(self) -> None:
        """Ask the engine to end this request now; what it has sent already still arrives."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        with closing(http.client.HTTPConnection(self._address)) as connection:
            self._post(connection, "generate_stream", STOP)
            connection.getresponse().read()

    def close(self) -> None:
        """The client's sender may be finished from now on; a generation that still runs is stopped."""
        with self._sender_lock:
            self._closed = True
        if not self._ended:
            self.stop()

    def _post(self, connection: http.client.HTTPConnection, verb: str, inputs: dict[str, Any]) -> None:
        body = json.dumps({"id": self._request_id, **inputs})
        connection.request("POST", f"{self._path}/{verb}", body, {"Content-Type": "application/json"})


def triton_url() -> str:
    """Where the tritonserver that runs this model answers HTTP: from its command line, else the default.

    Raises:
        EngineError: its HTTP endpoint is switched off.
    """
    words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    if _option(words, "--allow-http").lower() in ("false", "0", "no", "off"):
        raise EngineError("The BLS model needs tritonserver's HTTP endpoint: leave --allow-http on.")
    address = _option(words, "--http-address") or "127.0.0.1"
    host = "127.0.0.1" if address == "0.0.0.0" else address
    return f"http://{host}:{_option(words, '--http-port') or 8000}"


def _option(words: list[str], name: str) -> str:
    """The value of `--name value` or `--name=value`; empty where it is not given."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1]
    return ""


def _error_text(body: bytes) -> str:
    """The message of an error reply, which is JSON or one event of a stream."""
    try:
        return str(json.loads(body.removeprefix(b"data:"))["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace") or "The engine gave no answer."
