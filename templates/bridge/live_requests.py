"""Requests on their way: which sequence of which Triton request each engine id is, and what it has made."""

from __future__ import annotations

import itertools
import threading
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from protocol import Finish, Update
from request_tensors import Prompt, Request


@dataclass
class Sequence:
    """One prompt and one of its answers; the engine knows it by `engine_id`."""

    engine_id: int
    prompt: Prompt
    batch_index: int
    sequence_index: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    log_probs: array[float] = field(default_factory=lambda: array("f"))
    cum_log_prob: float = 0.0
    scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    finish: Finish = Finish.NONE

    def add(self, update: Update) -> None:
        if update.tokens:
            self.last_token_ns = time.monotonic_ns()
            self.first_token_ns = self.first_token_ns or self.last_token_ns
        self.tokens.extend(update.tokens)
        if update.log_probs is not None:
            self.log_probs.extend(update.log_probs)
            self.cum_log_prob += sum(update.log_probs)
        self.scheduled_ns = update.scheduled_ns
        self.finish = update.finish


class LiveRequest:
    """A Triton request and its open response sender. Each method may be called from any thread."""

    def __init__(self, triton_id: str, sender: Any, request: Request, first_engine_id: int) -> None:
        self.triton_id = triton_id
        self.request = request
        self._sender = sender
        self._lock = threading.Lock()
        self._arrival_ns = time.monotonic_ns()
        self._open = request.sequences
        places = itertools.product(range(len(request.prompts)), range(request.num_return_sequences))
        self.sequences = [
            Sequence(first_engine_id + number, request.prompts[row].copy(index), row, index)
            for number, (row, index) in enumerate(places)
        ]

    def is_cancelled(self) -> bool:
        with self._lock:
            return self._open > 0 and bool(self._sender.is_cancelled())

    def respond(self, sequence: Sequence) -> None:
        """Send what `sequence` has gathered: at once when streaming, else when it has ended."""
        with self._lock:
            self._respond(sequence)

    def stop(self) -> None:
        """End the request with what it has."""
        with self._lock:
            for sequence in self.sequences:
                if sequence.finish == Finish.NONE:
                    sequence.finish = Finish.CANCELLED
                    self._respond(sequence)

    def fail(self, error: Any) -> None:
        """End the request with an error."""
        with self._lock:
            if self._open:
                self._open = 0
                self._send(pb.InferenceResponse([], error=error), final=True)

    def _respond(self, sequence: Sequence) -> None:
        ended = sequence.finish != Finish.NONE
        if self._open and (ended or self.request.streaming):
            self._open -= ended
            self._send(pb.InferenceResponse(list(self._outputs(sequence))), final=self._open == 0)
            sequence.tokens = array("i")
            sequence.log_probs = array("f")

    def _send(self, response: Any, *, final: bool) -> None:
        try:
            self._sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)
        except pb.TritonModelException as error:
            # Triton takes no more for this request; the others go on.
            self._open = 0
            pb.Logger.log_warn(f"Triton did not take a response: {error}")

    def _outputs(self, sequence: Sequence) -> Iterator[Any]:
        request, prompt = self.request, sequence.prompt
        tokens = np.frombuffer(sequence.tokens, dtype=np.int32) if sequence.tokens else np.empty(0, np.int32)
        if not request.streaming and not request.exclude_input:
            tokens = np.concatenate([np.frombuffer(prompt.input_ids, dtype=np.int32), tokens])
        yield pb.Tensor("output_ids", tokens.reshape(1, 1, -1))
        yield _value("sequence_length", tokens.size, np.int32)
        if prompt.sampling.log_probs:
            log_probs = np.array(sequence.log_probs, dtype=np.float32)
            yield _value("cum_log_probs", sequence.cum_log_prob, np.float32)
            yield pb.Tensor("output_log_probs", log_probs.reshape(1, 1, -1))
        if len(request.prompts) > 1:
            yield _value("batch_index", sequence.batch_index, np.int32)
        if request.num_return_sequences > 1:
            yield _value("sequence_index", sequence.sequence_index, np.int32)
        if request.num_input_tokens:
            yield _value("num_input_tokens", len(prompt.input_ids), np.int32)
        if request.num_output_tokens:
            yield _value("num_output_tokens", tokens.size, np.int32)
        if request.perf_metrics:
            yield from self._timings(sequence)

    def _timings(self, sequence: Sequence) -> Iterator[Any]:
        yield _value("arrival_time_ns", self._arrival_ns, np.int64)
        yield _value("first_scheduled_time_ns", sequence.scheduled_ns, np.int64)
        yield _value("first_token_time_ns", sequence.first_token_ns, np.int64)
        yield _value("last_token_time_ns", sequence.last_token_ns, np.int64)


def _value(name: str, value: float, dtype: Any) -> Any:
    return pb.Tensor(name, np.array([[value]], dtype=dtype))


class Registry:
    """All live requests, found by engine id or by Triton request id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_engine_id: dict[int, tuple[LiveRequest, Sequence]] = {}

    def add(self, live: LiveRequest) -> None:
        with self._lock:
            for sequence in live.sequences:
                self._by_engine_id[sequence.engine_id] = (live, sequence)

    def __len__(self) -> int:
        """Sequences that run or wait."""
        return len(self._by_engine_id)

    def find(self, engine_id: int) -> tuple[LiveRequest, Sequence] | None:
        return self._by_engine_id.get(engine_id)

    def drop(self, engine_id: int) -> None:
        with self._lock:
            self._by_engine_id.pop(engine_id, None)

    def remove(self, live: LiveRequest) -> list[int]:
        """Forget a request; the engine ids of its sequences that still ran."""
        with self._lock:
            ids = [sequence.engine_id for sequence in live.sequences]
            return [engine_id for engine_id in ids if self._by_engine_id.pop(engine_id, None)]

    def requests(self) -> list[LiveRequest]:
        """Every live request once, oldest first."""
        with self._lock:
            return list({id(live): live for live, _ in self._by_engine_id.values()}.values())

    def with_triton_id(self, triton_id: str) -> list[LiveRequest]:
        return [live for live in self.requests() if live.triton_id == triton_id]
