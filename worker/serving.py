"""The worker's loop: requests from the bridge in, one engine step after the other, new tokens out."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from worker import protocol
from worker.protocol import (
    Finish,
    FrameReader,
    FrameType,
    GenerationRequest,
    Ready,
    Refusal,
    Stats,
    Status,
    Update,
)
from worker.validate import Limits, RequestRefused, check_request

LOG = logging.getLogger("worker")
STATS_PERIOD_S = 0.1
STATS_HEARTBEAT_S = 1.0
RECEIVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Load:
    """How full the engine is: requests computed in the last step, share of the KV cache in use."""

    scheduled: int
    kv_used_fraction: float


class Adapter(Protocol):
    """One engine. All methods but `limits` and `ready` are called by the stepping thread only."""

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""

    @property
    def ready(self) -> Ready:
        """What the bridge is told once."""

    def submit(self, request: GenerationRequest) -> None:
        """Take a valid request. Raises RequestRefused when the engine cannot run it; others go on."""

    def cancel(self, request_id: int) -> None:
        """Stop a request between two tokens; nothing more is reported for it. Unknown ids are ignored."""

    def step(self) -> list[Update | Refusal]:
        """Run one engine step and return what it brought: new tokens, ends, failures of single requests."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""

    @property
    def active(self) -> int:
        """Requests taken and not ended."""

    def load(self) -> Load:
        """How full the engine is now."""


class Connection:
    """The worker's end of the socket: whole frames out from any thread, a callback for frames in."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def closed(self) -> bool:
        """Whether the bridge has gone."""
        return self._closed.is_set()

    def send(self, data: bytes) -> None:
        """Send a frame; without a bridge there is nobody to send it to."""
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError:
            self._closed.set()

    def receive_forever(self, handle: Callable[[FrameType, bytes], None]) -> None:
        """Return when the bridge has closed its end."""
        reader = FrameReader()
        while data := self._receive():
            for kind, payload in reader.feed(data):
                handle(kind, payload)
        self._closed.set()

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except ConnectionError:
            return b""


class Inbox:
    """Requests and cancellations on their way to the stepping thread, in order of arrival."""

    def __init__(self) -> None:
        self._messages: deque[GenerationRequest | int] = deque()
        self._arrived = threading.Event()

    def put(self, kind: FrameType, payload: bytes) -> None:
        if kind == FrameType.SUBMIT:
            self._messages.append(protocol.decode_submit(payload))
        elif kind == FrameType.CANCEL:
            self._messages.append(protocol.decode_cancel(payload))
        self._arrived.set()

    def wait(self, timeout_s: float) -> None:
        self._arrived.wait(timeout_s)

    def drain(self) -> list[GenerationRequest | int]:
        self._arrived.clear()
        return [self._messages.popleft() for _ in range(len(self._messages))]


class StepClock:
    """Counts steps and tokens; says how long the running step has taken."""

    def __init__(self) -> None:
        self.steps = 0
        self.tokens = 0
        self._started = 0.0

    def start(self) -> None:
        self._started = time.monotonic()

    def stop(self) -> None:
        self._started = 0.0
        self.steps += 1

    @property
    def age_s(self) -> float:
        started = self._started
        return time.monotonic() - started if started else 0.0


class Server:
    """Serves one adapter to one bridge; `serve_forever` is the stepping thread."""

    def __init__(self, connection: Connection, inbox: Inbox, adapter: Adapter) -> None:
        self._connection = connection
        self._inbox = inbox
        self._adapter = adapter
        self._clock = StepClock()
        self._live: set[int] = set()
        self._news = threading.Event()

    def serve_forever(self) -> None:
        """Step while there is work and a bridge. An exception of the engine ends every request."""
        self._connection.send(protocol.encode_ready(self._adapter.ready))
        threading.Thread(target=self._report_stats, name="stats", daemon=True).start()
        try:
            while not self._connection.closed:
                self._take_messages()
                if self._adapter.busy:
                    self._step()
                else:
                    self._news.set()
                    self._inbox.wait(STATS_HEARTBEAT_S)
        except Exception as error:  # the engine may raise anything; it is reported, and the process ends
            self._fail_all(error)
            raise

    def _take_messages(self) -> None:
        for message in self._inbox.drain():
            if isinstance(message, int):
                self._live.discard(message)
                self._adapter.cancel(message)
            else:
                self._submit(message)

    def _submit(self, request: GenerationRequest) -> None:
        try:
            check_request(request, self._adapter.limits)
            if request.request_id in self._live:
                raise RequestRefused(f"Request {request.request_id} is already running.", code="duplicate_id")
            self._adapter.submit(request)
            self._live.add(request.request_id)
        except RequestRefused as refused:
            refusal = Refusal(request.request_id, refused.status, refused.code, str(refused))
            self._connection.send(protocol.encode_refusal(refusal))

    def _step(self) -> None:
        self._clock.start()
        results = self._adapter.step()
        self._clock.stop()
        updates = [result for result in results if isinstance(result, Update)]
        self._clock.tokens += sum(len(update.tokens) for update in updates)
        self._live.difference_update(update.request_id for update in updates if update.finish != Finish.NONE)
        if updates:
            self._connection.send(protocol.encode_step(updates))
        for result in results:
            if isinstance(result, Refusal):
                self._live.discard(result.request_id)
                self._connection.send(protocol.encode_refusal(result))

    def _fail_all(self, error: Exception) -> None:
        LOG.exception("The engine failed.")
        for request_id in sorted(self._live):
            message = f"The engine failed while this request was running: {error}"
            refusal = Refusal(request_id, Status.INTERNAL, "engine_failed", message)
            self._connection.send(protocol.encode_refusal(refusal))

    def _report_stats(self) -> None:
        """Send the engine's state when it changes, at once when it goes idle, and as a sign of life."""
        last, last_sent = Stats(), 0.0
        tokens, measured = 0, time.monotonic()
        while not self._connection.closed:
            self._news.wait(STATS_PERIOD_S)
            self._news.clear()
            now = time.monotonic()
            stats = self._stats(last.tokens_per_second)
            if now - measured >= STATS_HEARTBEAT_S:
                rate = (self._clock.tokens - tokens) / (now - measured)
                stats = self._stats(round(rate, 1))
                tokens, measured = self._clock.tokens, now
            if stats != last or now - last_sent >= STATS_HEARTBEAT_S:
                self._connection.send(protocol.encode_stats(stats))
                last, last_sent = stats, now

    def _stats(self, tokens_per_second: float) -> Stats:
        load = self._adapter.load()
        return Stats(
            active=self._adapter.active,
            scheduled=load.scheduled,
            kv_used_fraction=load.kv_used_fraction,
            steps=self._clock.steps,
            generated_tokens=self._clock.tokens,
            tokens_per_second=tokens_per_second,
            step_age_s=round(self._clock.age_s, 1),
        )
