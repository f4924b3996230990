"""A Triton Python model that streams tokens at a pace: the benchmark's source behind the real tritonserver.

Copied into a model repository as `model.py`. The folder that EW_BENCH names holds `pace` (seconds between
tokens) and `times`, where row `seed`, column token number is the time of each response.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

FOLDER = Path(os.environ.get("EW_BENCH", "."))
TOKEN_ID = 7


class TritonPythonModel:
    """One thread writes what is due, for all requests."""

    def initialize(self, arguments: dict[str, Any]) -> None:
        shape = tuple(int(size) for size in os.environ["EW_BENCH_SHAPE"].split("x"))
        self._times = np.memmap(FOLDER / "times", dtype=np.float64, mode="r+", shape=shape)
        self._due: list[tuple[float, int, int, int, float, Any]] = []
        self._changed = threading.Condition()
        self._number = 0
        threading.Thread(target=self._run, daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        pace = float((FOLDER / "pace").read_text())
        with self._changed:
            for request in requests:
                row, count = (_value(request, name) for name in ("seed", "request_output_len"))
                self._number += 1
                task = (time.perf_counter(), self._number, row, count, pace, request.get_response_sender())
                heapq.heappush(self._due, task)
            self._changed.notify()

    def _run(self) -> None:
        sent: dict[int, int] = {}
        while True:
            due, number, row, count, pace, sender = self._next()
            column = sent.get(number, 0)
            self._times[row, column] = time.perf_counter()
            last = column + 1 == count or sender.is_cancelled()
            flags = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
            sender.send(_response(), flags=flags)
            sent[number] = column + 1
            if last:
                del sent[number]
            else:
                with self._changed:
                    heapq.heappush(self._due, (due + pace, number, row, count, pace, sender))

    def _next(self) -> Any:
        with self._changed:
            while not self._due or self._due[0][0] > time.perf_counter():
                wait = self._due[0][0] - time.perf_counter() if self._due else None
                self._changed.wait(wait)
            return heapq.heappop(self._due)


def _value(request: Any, name: str) -> int:
    return int(pb.get_input_tensor_by_name(request, name).as_numpy().ravel()[0])


def _response() -> Any:
    ids = pb.Tensor("output_ids", np.array([[[TOKEN_ID]]], np.int32))
    return pb.InferenceResponse([ids, pb.Tensor("sequence_length", np.array([[1]], np.int32))])
