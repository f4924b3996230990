"""Triton model: text in, text out, with one decoder a request, exact stop words and cancellation.

Unlike the ensemble it sees the whole life of a request. Each request has a thread, which waits most of the
time, so one instance serves many at once.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # our modules lie beside this file

import numpy as np
import triton_python_backend_utils as pb
from bls_tensors import PREPROCESSED, engine_inputs, forwarded_outputs, preprocessing_inputs
from engine_calls import EngineCalls, EngineError, triton_url
from tokenizers import Tokenizer

from common.detokenize import IncrementalDecoder, TokenTexts
from proxy.stops import StopMatcher

TRUE = ("true", "1", "t", "y", "yes")
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
WATCH_S = 0.05


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"] / values["tokenizer_dir"]
        skip = values["skip_special_tokens"].lower() in TRUE
        self._texts = TokenTexts(Tokenizer.from_file(str(folder / "tokenizer.json")), skip)
        self._accumulate = values["accumulate_tokens"].lower() in TRUE
        self._preprocessing = values["preprocessing_model_name"]
        # All versions of a model share its configuration; each calls its like.
        self._version = args["model_version"]
        engine = f"{values['tensorrt_llm_model_name']}/versions/{self._version}"
        self._calls = EngineCalls(triton_url(), engine)
        self._pool = ThreadPoolExecutor(int(values["max_concurrent_requests"]))
        self._closing = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            self._pool.submit(self._serve, request, request.get_response_sender())

    def finalize(self) -> None:
        self._closing.set()
        self._pool.shutdown()

    def _watch(self) -> None:
        """A client that has gone stops its generation, also while no token comes."""
        while not self._closing.wait(WATCH_S):
            try:
                self._calls.stop_cancelled()
            except OSError as error:  # the server is ending; the next round tries again
                pb.Logger.log_warn(f"a cancelled request could not be stopped: {error}")

    def _serve(self, request: Any, sender: Any) -> None:
        try:
            self._generate(request, sender)
        except (EngineError, pb.TritonModelException) as error:
            _fail(sender, str(error))
        except Exception as error:  # the process boundary: nothing else would tell the client
            pb.Logger.log_error(f"BLS request failed: {error!r}")
            _fail(sender, f"The request failed: {error}.")

    def _generate(self, request: Any, sender: Any) -> None:
        inputs = engine_inputs(request, self._preprocess(request))
        answer = _Answer(self._texts, _stop_words(request), self._accumulate)
        with self._calls.open(request.request_id(), sender, inputs) as call:
            for document in call.responses():
                sender.send(_response(answer.add(document), document))
                if answer.stopped:
                    break
        rest = answer.end()
        sender.send(*([_response(rest, {})] if rest else []), flags=FINAL)

    def _preprocess(self, request: Any) -> dict[str, Any]:
        inner = pb.InferenceRequest(
            model_name=self._preprocessing,
            model_version=int(self._version),
            request_id=request.request_id(),
            inputs=preprocessing_inputs(request),
            requested_output_names=list(PREPROCESSED),
            parameters=json.loads(request.parameters() or "{}"),
        )
        response = inner.exec()
        if response.has_error():
            raise EngineError(response.error().message())
        return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


class _Answer:
    """The text of one answer: decoded, cut at the first stop word."""

    def __init__(self, texts: TokenTexts, stop_words: tuple[str, ...], accumulate: bool) -> None:
        self._decoder = IncrementalDecoder(texts)
        self._stops = StopMatcher(stop_words)
        self._accumulate = accumulate
        self._sent = ""

    @property
    def stopped(self) -> bool:
        return self._stops.matched is not None

    def add(self, document: dict[str, Any]) -> str:
        """The text that an engine's response completes; one token comes as a number, more as a list."""
        ids = document.get("output_ids", [])
        text = self._decoder.push(ids if isinstance(ids, list) else [ids])
        return self._shown(self._stops.push(text))

    def end(self) -> str:
        """What was held back as the possible start of a stop word; half a character is dropped."""
        rest = "" if self.stopped else self._stops.flush()
        return self._shown(rest) if rest else ""

    def _shown(self, text: str) -> str:
        self._sent += text if self._accumulate else ""
        return self._sent if self._accumulate else text


def _stop_words(request: Any) -> tuple[str, ...]:
    tensor = pb.get_input_tensor_by_name(request, "stop_words")
    words = [] if tensor is None else [word.decode() for word in tensor.as_numpy().reshape(-1)]
    return tuple(word for word in words if word)


def _response(text: str, document: dict[str, Any]) -> Any:
    values = np.array([[text.encode()]], dtype=object)
    return pb.InferenceResponse([pb.Tensor("text_output", values), *forwarded_outputs(document)])


def _fail(sender: Any, message: str) -> None:
    sender.send(pb.InferenceResponse(error=pb.TritonError(message)), flags=FINAL)
