"""Triton model: text in, text out, in the form of upstream's llmapi model, over an engine worker of its own.

Tensors, defaults and the cumulative text of a stream are upstream's. Tokenizing and decoding happen here; the
bridge beside this file talks to the worker, as in `tensorrt_llm`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # our modules lie beside this file

import bridge
import triton_python_backend_utils as pb
from prompts import Prompts, is_true, model_parameters
from request_tensors import Inputs, is_stop
from text_requests import TextRequest, parse_request

from common.detokenize import TokenTexts


class TritonPythonModel(bridge.TritonPythonModel):
    """What Triton's Python backend calls: the bridge's model, with a text request on its way."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the tokenizer, start the worker; what keeps it from serving becomes Triton's load error."""
        parameters = model_parameters(args)
        self._prompts = Prompts.of_model(args, parameters)
        self._texts = TokenTexts(self._prompts.tokenizer, is_true(parameters["skip_special_tokens"]))
        self._start(args, json.loads(args["model_config"]), int(parameters["max_queue_size"]))

    def _take(self, request: Any, sender: Any) -> None:
        # A batch of one in front, as the tensors of `tensorrt_llm` have it.
        inputs = Inputs({tensor.name(): tensor.as_numpy()[None] for tensor in request.inputs()})
        if is_stop(inputs):
            self._bridge.stop_request(request.request_id(), early=False)
            sender.send(pb.InferenceResponse([]), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        parsed, wishes = parse_request(inputs, self._prompts, as_chat=self._prompts.is_chat(request))
        engine_id = self._bridge.reserve_ids(1)
        live = TextRequest(
            request.request_id(), sender, parsed, engine_id, wishes, self._texts, self._bridge.end
        )
        self._bridge.submit(live)
