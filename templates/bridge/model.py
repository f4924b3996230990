"""The `tensorrt_llm` model inside Triton, for engines that are driven from Python.

It turns Triton requests into messages to an engine worker of its own and the worker's answers into
responses, at most one a request and engine step. It needs numpy and the files beside it only.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import threading
import traceback
from collections.abc import Mapping
from typing import Any

import protocol
import triton_python_backend_utils as pb
from bridge_metrics import Metrics
from bridge_settings import SettingsError, read_settings
from early_stops import EarlyStops
from live_requests import LiveRequest, Registry, Sequence
from protocol import Finish, FrameType, GenerationRequest, ProtocolError, Ready, Refusal, Status
from request_tensors import BadRequest, Inputs, is_stop, parse_request
from triton_errors import cancelled, triton_error
from worker_process import Supervisor, WorkerError

CANCEL_POLL_S = 0.025
PARENT_POLL_S = 0.5
# One question to Triton takes about 0.1 ms, so that this many a second take 4 % of a core.
CANCEL_CHECKS_PER_POLL = 10
MAY_BE_EARLY = "stop_may_be_early"
TRUE_WORDS = ("True", "true", "TRUE", "1")


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Start the worker; whatever keeps it from serving becomes Triton's load error."""
        config = json.loads(args["model_config"])
        if config.get("max_batch_size", 0) < 1:
            raise pb.TritonModelException("max_batch_size must be 1 or more in config.pbtxt.")
        parameters = config.get("parameters") or {}
        default = (parameters.get("exclude_input_in_output") or {}).get("string_value", "")
        self._exclude_input = default in TRUE_WORDS
        self._decoupled = pb.using_decoupled_model_transaction_policy(config)
        self._start(args, config, _max_queue_size(config))

    def _start(self, args: Mapping[str, str], config: Mapping[str, Any], max_queue_size: int) -> None:
        try:
            settings = read_settings(args, config)
            metrics = Metrics(args["model_name"], args["model_version"])
            self._bridge = Bridge(metrics, max_queue_size)
            self._bridge.start(settings)
        except (SettingsError, WorkerError, ProtocolError, OSError) as error:
            raise pb.TritonModelException(_shown(str(error))) from error
        # A profile shows Triton's stub collecting garbage between executes; this leaves out what is loaded.
        gc.freeze()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._take(request, sender)
            except BadRequest as error:
                _refuse(sender, error.status, str(error))
            except WorkerError as error:
                _refuse(sender, Status.UNAVAILABLE, str(error))
            except Exception as error:  # one request must not fail the others that came with it
                pb.Logger.log_error(traceback.format_exc())
                _refuse(sender, Status.INTERNAL, f"The bridge failed on this request: {error!r}")

    def finalize(self) -> None:
        self._bridge.close()

    def _take(self, request: Any, sender: Any) -> None:
        inputs = Inputs({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        if is_stop(inputs):
            self._bridge.stop_request(request.request_id(), early=_may_be_early(request))
            sender.send(pb.InferenceResponse([]), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        parsed = parse_request(inputs, decoupled=self._decoupled, exclude_input=self._exclude_input)
        first_id = self._bridge.reserve_ids(parsed.sequences)
        self._bridge.submit(LiveRequest(request.request_id(), sender, parsed, first_id))


def _max_queue_size(config: Mapping[str, Any]) -> int:
    """Requests that may wait beyond the engine's batch, 0 for any number; read where the C++ backend does."""
    policy = (config.get("dynamic_batching") or {}).get("default_queue_policy") or {}
    return int(policy.get("max_queue_size") or 0)


def _may_be_early(request: Any) -> bool:
    """Whether the stop's sender never uses an id twice, so that the stop may wait for its request.

    The C++ backend has no such parameter: there, and for others here, a stop of an unknown id does nothing.
    """
    return bool(json.loads(request.parameters() or "{}").get(MAY_BE_EARLY))


def _shown(text: str) -> str:
    """Paths beyond ASCII are no text in Triton's stub (see bridge_settings)."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _refuse(sender: Any, status: Status, message: str) -> None:
    response = pb.InferenceResponse([], error=triton_error(status, message))
    sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class Bridge:
    """Between Triton's requests and the worker: owns the engine ids, hears the worker, sees cancels."""

    def __init__(self, metrics: Metrics, max_queue_size: int) -> None:
        self._metrics = metrics
        self._max_queue_size = max_queue_size
        self._room: int | None = None
        self._registry = Registry()
        self._early_stops = EarlyStops()
        self._next_id = itertools.count(1)
        self._closing = threading.Event()
        self._supervisor: Supervisor | None = None
        self._cancel_thread = threading.Thread(target=self._watch_cancels, name="cancel", daemon=True)

    @property
    def _worker(self) -> Supervisor:
        if self._supervisor is None:
            raise WorkerError("The engine worker has not started.")
        return self._supervisor

    def start(self, settings: Any) -> None:
        self._supervisor = Supervisor(
            settings, self, lambda text: pb.Logger.log_warn(f"{settings.name}: {text}")
        )
        self._supervisor.start()
        self._cancel_thread.start()
        threading.Thread(target=self._end_with_triton, args=(os.getppid(),), daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._worker.close()
        self._cancel_thread.join()
        self._metrics.release()

    def reserve_ids(self, count: int) -> int:
        """The first of `count` engine ids in a row."""
        return [next(self._next_id) for _ in range(count)][0]

    def submit(self, live: LiveRequest) -> None:
        """Hand all sequences of a request to the worker. Raises WorkerError while it is away or full."""
        if self._early_stops.take(live.triton_id):
            live.stop()
            return
        if self._room is not None and len(self._registry) + live.request.sequences > self._room:
            raise WorkerError(
                f"The queue is full: {len(self._registry)} requests run or wait. Try again soon."
            )
        self._registry.add(live)
        try:
            for sequence in live.sequences:
                generation = GenerationRequest(
                    sequence.engine_id, sequence.prompt.input_ids, sequence.prompt.sampling
                )
                self._worker.send(protocol.encode_submit(generation))
        except WorkerError:
            self._registry.remove(live)
            raise

    def stop_request(self, triton_id: str, *, early: bool) -> None:
        """End the live requests with this id at once; an id that nobody has is no error.

        Args:
            early: end a request with this id that comes later, too.
        """
        if not triton_id:
            raise BadRequest("stop needs the request id of the request to stop.")
        found = self._registry.with_triton_id(triton_id)
        for live in found:
            self._cancel(live)
            live.stop()
        if early and not found:
            self._early_stops.remember(triton_id)

    def end(self, engine_id: int) -> None:
        """Stop what the engine still runs of one sequence."""
        with contextlib.suppress(WorkerError):  # a worker that is away runs nothing
            self._worker.send(protocol.encode_cancel(engine_id))

    def on_ready(self, ready: Ready) -> None:
        self._room = ready.max_batch_size + self._max_queue_size if self._max_queue_size else None
        self._metrics.engine_ready(ready)

    def on_frames(self, frames: list[tuple[FrameType, bytes]]) -> None:
        changed: dict[int, tuple[LiveRequest, Sequence]] = {}
        for kind, payload in frames:
            if kind == FrameType.STEP:
                self._gather(payload, changed)
            elif kind == FrameType.REFUSED:
                self._refused(protocol.decode_refusal(payload))
            elif kind == FrameType.STATS:
                stats = protocol.decode_stats(payload)
                self._metrics.update(stats)
                self._worker.note_stats(stats)
        for live, sequence in changed.values():
            live.respond(sequence)
            if sequence.finish != Finish.NONE:
                self._registry.drop(sequence.engine_id)

    def on_lost(self, reason: str) -> None:
        self._metrics.worker_lost()
        error = triton_error(Status.INTERNAL, f"{reason} This request was lost; send it again.")
        for live in self._registry.requests():
            self._registry.remove(live)
            live.fail(error)

    def _gather(self, payload: bytes, changed: dict[int, tuple[LiveRequest, Sequence]]) -> None:
        for update in protocol.decode_step(payload):
            found = self._registry.find(update.request_id)
            if found is not None:
                found[1].add(update)
                changed[update.request_id] = found

    def _refused(self, refusal: Refusal) -> None:
        found = self._registry.find(refusal.request_id)
        if found is not None:
            self._cancel(found[0])
            found[0].fail(triton_error(refusal.status, refusal.message))

    def _cancel(self, live: LiveRequest) -> None:
        """Forget a request and stop what the engine still runs of it."""
        for engine_id in self._registry.remove(live):
            self.end(engine_id)

    def _end_with_triton(self, triton: int) -> None:
        """A killed Triton leaves its Python processes behind. (The worker looks after a stuck one.)"""
        while not self._closing.wait(PARENT_POLL_S):
            if os.getppid() != triton:
                os._exit(1)

    def _watch_cancels(self) -> None:
        """Ask Triton in turn which clients have gone; never so often that asking costs much."""
        position = 0
        while not self._closing.wait(CANCEL_POLL_S):
            requests = self._registry.requests()
            for offset in range(min(len(requests), CANCEL_CHECKS_PER_POLL)):
                live = requests[(position + offset) % len(requests)]
                if live.is_cancelled():
                    self._cancel(live)
                    live.fail(cancelled())
            position += CANCEL_CHECKS_PER_POLL
