"""Calls of the engine model from BLS: live ones are known, so that they can be stopped."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton_python_backend_utils as pb


class EngineCalls:
    """All calls in flight to one engine model. Thread-safe."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._live: dict[str, EngineCall] = {}

    @contextmanager
    def open(self, request: Any, sender: Any, inputs: list[Any], outputs: list[str]) -> Iterator[EngineCall]:
        """A call on behalf of a client's request; it is stopped if the body is left early."""
        call = EngineCall(self._model, self._free_id(request.request_id()), sender, inputs, outputs)
        with self._lock:
            self._live[call.request_id] = call
        try:
            yield call
        finally:
            call.close()
            with self._lock:
                del self._live[call.request_id]

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
        with self._lock:
            return wanted if wanted and wanted not in self._live else uuid.uuid4().hex


class EngineCall:
    """One generation. `stop` may be called from any thread, and again."""

    def __init__(
        self, model: str, request_id: str, sender: Any, inputs: list[Any], outputs: list[str]
    ) -> None:
        self.request_id = request_id
        self._model = model
        self._sender = sender
        self._inputs = inputs
        self._outputs = ["output_ids", "sequence_length", *outputs]
        self._stopped = threading.Event()
        self._ended = False
        self._closed = False
        self._sender_lock = threading.Lock()

    def is_cancelled(self) -> bool:
        """Whether the client has gone. Never asked after the end: Triton would crash on a finished sender."""
        with self._sender_lock:
            return not self._closed and bool(self._sender.is_cancelled())

    def responses(self) -> Iterator[Any]:
        """The engine's responses that carry tokens, until the generation ends.

        Raises:
            pb.TritonModelException: the engine refused or failed.
        """
        call = pb.InferenceRequest(
            model_name=self._model,
            request_id=self.request_id,
            inputs=self._inputs,
            requested_output_names=self._outputs,
        )
        for response in call.exec(decoupled=True):
            if response.has_error():
                self._ended = True
                raise pb.TritonModelException(response.error().message())
            if response.output_tensors():
                yield response
        self._ended = True

    def stop(self) -> None:
        """Ask the engine to end this request now; what it has sent already still arrives."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        inputs = [
            pb.Tensor("input_ids", np.ones((1, 1), dtype=np.int32)),
            pb.Tensor("input_lengths", np.ones((1, 1), dtype=np.int32)),
            pb.Tensor("request_output_len", np.ones((1, 1), dtype=np.int32)),
            pb.Tensor("stop", np.ones((1, 1), dtype=bool)),
        ]
        request = pb.InferenceRequest(
            model_name=self._model,
            request_id=self.request_id,
            inputs=inputs,
            requested_output_names=["output_ids", "sequence_length"],
        )
        for _ in request.exec(decoupled=True):
            pass

    def close(self) -> None:
        """The client's sender may be finished from now on; a generation that still runs is stopped."""
        with self._sender_lock:
            self._closed = True
        if not self._ended:
            self.stop()
