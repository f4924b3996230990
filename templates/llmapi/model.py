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
from prompts import Prompts
from request_tensors import Inputs, is_stop
from text_requests import TextRequest, parse_request

from common.detokenize import TokenTexts

TRUE = ("true", "1", "t", "y", "yes")
CHAT_PARAMETER = "apply_chat_template"


class TritonPythonModel(bridge.TritonPythonModel):
    """What Triton's Python backend calls: the bridge's model, with a text request on its way."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the tokenizer, start the worker; what keeps it from serving becomes Triton's load error."""
        config = json.loads(args["model_config"])
        values = {key: value["string_value"] for key, value in config["parameters"].items()}
        self._chat_by_default = _is_true(values[CHAT_PARAMETER])
        self._prompts = Prompts(
            Path(args["model_repository"]) / args["model_version"] / values["tokenizer_dir"],
            add_special_tokens=_is_true(values["add_special_tokens"]),
            truncation=values["truncation"],
            max_input_len=int(values["max_input_len"]),
        )
        self._texts = TokenTexts(self._prompts.tokenizer, _is_true(values["skip_special_tokens"]))
        self._start(args, config, int(values["max_queue_size"]))

    def _take(self, request: Any, sender: Any) -> None:
        # A batch of one in front, as the tensors of `tensorrt_llm` have it.
        inputs = Inputs({tensor.name(): tensor.as_numpy()[None] for tensor in request.inputs()})
        if is_stop(inputs):
            self._bridge.stop_request(request.request_id(), early=False)
            sender.send(pb.InferenceResponse([]), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        parsed, wishes = parse_request(inputs, self._prompts, as_chat=self._as_chat(request))
        engine_id = self._bridge.reserve_ids(1)
        live = TextRequest(
            request.request_id(), sender, parsed, engine_id, wishes, self._texts, self._bridge.end
        )
        self._bridge.submit(live)

    def _as_chat(self, request: Any) -> bool:
        asked = json.loads(request.parameters() or "{}").get(CHAT_PARAMETER)
        return self._chat_by_default if asked is None else _is_true(str(asked))


def _is_true(text: str) -> bool:
    return text.lower() in TRUE
