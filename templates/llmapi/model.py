"""Triton model: text in, text out, in the form of upstream's llmapi model, over an engine worker of its own.

Tensors, defaults and the cumulative text of a stream are upstream's. Tokenizing and decoding happen here; the
bridge beside this file talks to the worker, as in `tensorrt_llm`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # our modules lie beside this file

import protocol
import triton_python_backend_utils as pb
from bridge import Bridge
from bridge_metrics import Metrics
from bridge_settings import SettingsError, read_settings
from prompts import Prompts
from protocol import ProtocolError, Status
from request_tensors import BadRequest, Inputs, is_stop
from text_requests import TextRequest, parse_request
from triton_errors import triton_error
from worker_process import WorkerError

from common.detokenize import TokenTexts

TRUE = ("true", "1", "t", "y", "yes")
CHAT_PARAMETER = "apply_chat_template"
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TextBridge(Bridge):
    """A bridge whose requests may end before the engine thinks so."""

    def end(self, engine_id: int) -> None:
        with contextlib.suppress(WorkerError):  # a worker that is away runs nothing
            self._worker.send(protocol.encode_cancel(engine_id))


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
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
        try:
            metrics = Metrics(args["model_name"], args["model_version"])
            self._bridge = TextBridge(metrics, int(values["max_queue_size"]))
            self._bridge.start(read_settings(args, config))
        except (SettingsError, WorkerError, ProtocolError, OSError) as error:
            raise pb.TritonModelException(str(error)) from error
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
                _refuse(sender, Status.INTERNAL, f"The model failed on this request: {error!r}")

    def finalize(self) -> None:
        self._bridge.close()

    def _take(self, request: Any, sender: Any) -> None:
        # A batch of one in front, as the tensors of `tensorrt_llm` have it.
        inputs = Inputs({tensor.name(): tensor.as_numpy()[None] for tensor in request.inputs()})
        if is_stop(inputs):
            self._bridge.stop_request(request.request_id(), early=False)
            sender.send(pb.InferenceResponse([]), flags=FINAL)
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


def _refuse(sender: Any, status: Status, message: str) -> None:
    sender.send(pb.InferenceResponse([], error=triton_error(status, message)), flags=FINAL)


def _is_true(text: str) -> bool:
    return text.lower() in TRUE
