"""Stands in for the engine behind the production config: the answer is the prompt, one token a response.

With `min_tokens` the prompt is repeated up to that many. `stop` ends requests by id. The number of live
requests is kept in the file `live` of EW_LOG_DIR.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

PACE_S = 0.002
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._live: dict[str, threading.Event] = {}
        self._file = Path(os.environ["EW_LOG_DIR"]) / "live"

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            if _value(request, "stop") is not None:
                self._live.get(request.request_id(), threading.Event()).set()
                sender.send(_response([]), flags=FINAL)
                continue
            stopped = self._live[request.request_id()] = threading.Event()
            arguments = (request.request_id(), sender, list(_chunks(request)), stopped)
            threading.Thread(target=self._answer, args=arguments).start()

    def _answer(self, request_id: str, sender: Any, chunks: list[Any], stopped: threading.Event) -> None:
        self._file.write_text(str(len(self._live)))
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1 or stopped.wait(PACE_S)
            sender.send(_response(chunk), flags=FINAL if last else 0)
            if last:
                break
        self._live.pop(request_id, None)
        self._file.write_text(str(len(self._live)))


def _chunks(request: Any) -> Iterator[Any]:
    ids = _value(request, "input_ids")[0].tolist()
    limit = int(_value(request, "request_output_len").flat[0])
    least = _value(request, "min_tokens")
    wanted = min(limit, len(ids) if least is None else int(least.flat[0]))
    answer = itertools.islice(itertools.cycle(ids), wanted)
    streaming = _value(request, "streaming")
    if streaming is None or not streaming.flat[0]:
        yield list(answer)
        return
    yield from ([token] for token in answer)


def _response(ids: Any) -> Any:
    return pb.InferenceResponse(
        [
            pb.Tensor("output_ids", np.asarray(ids, dtype=np.int32).reshape(1, 1, -1)),
            pb.Tensor("sequence_length", np.array([[len(ids)]], dtype=np.int32)),
        ]
    )


def _value(request: Any, name: str) -> Any:
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
