"""Stands in for engines of other makes: the answer is the prompt twice, in the style of the model's name.

`whole` is not decoupled; `at-once` is and sends one response all the same; `delta` and `cumulative` stream.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

PACE_S = 0.005
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._style = args["model_name"].removesuffix("-tensorrt_llm")

    def execute(self, requests: list[Any]) -> list[Any] | None:
        if self._style == "whole":
            return [_response(_answer(request)) for request in requests]
        for request in requests:
            self._stream(_answer(request), request.get_response_sender())
        return None

    def _stream(self, ids: list[int], sender: Any) -> None:
        if self._style == "at-once":
            sender.send(_response(ids), flags=FINAL)
            return
        for end in range(1, len(ids) + 1):
            start = 0 if self._style == "cumulative" else end - 1
            sender.send(_response(ids[start:end]))
            time.sleep(PACE_S)
        sender.send(flags=FINAL)


def _answer(request: Any) -> list[int]:
    prompt = pb.get_input_tensor_by_name(request, "input_ids").as_numpy()[0].tolist()
    return [*prompt, *prompt]


def _response(ids: list[int]) -> Any:
    return pb.InferenceResponse(
        [
            pb.Tensor("output_ids", np.asarray(ids, dtype=np.int32).reshape(1, 1, -1)),
            pb.Tensor("sequence_length", np.array([[len(ids)]], dtype=np.int32)),
        ]
    )
