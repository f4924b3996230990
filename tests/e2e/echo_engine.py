"""Stands in for the engine behind the production config: the answer is the prompt, one token a response."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

PACE_S = 0.002


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            arguments = (
                sender,
                _value(request, "input_ids")[0],
                self._limit(request),
                self._streams(request),
            )
            threading.Thread(target=_answer, args=arguments).start()

    def _limit(self, request: Any) -> int:
        return int(_value(request, "request_output_len").flat[0])

    def _streams(self, request: Any) -> bool:
        streaming = _value(request, "streaming")
        return streaming is not None and bool(streaming.flat[0])


def _answer(sender: Any, ids: Any, limit: int, streams: bool) -> None:
    ids = ids[:limit]
    chunks = [ids[index : index + 1] for index in range(len(ids))] if streams else [ids]
    for number, chunk in enumerate(chunks):
        threading.Event().wait(PACE_S)
        last = number == len(chunks) - 1
        flags = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
        sender.send(_response(chunk), flags=flags)


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
