"""Triton model: token ids of an answer -> its text, right across the chunks of a stream."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # our modules lie beside this file

import numpy as np
import triton_python_backend_utils as pb
from stream_starts import StartListener
from stream_texts import StreamTexts
from tokenizers import Tokenizer

from common.detokenize import TokenTexts

TRUE = ("true", "1", "t", "y", "yes")


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        version_folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        tokenizer_dir = version_folder / parameters["tokenizer_dir"]["string_value"]
        skip = parameters.get("skip_special_tokens", {}).get("string_value", "true").lower() in TRUE
        tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
        self._streams = StreamTexts(TokenTexts(tokenizer, skip))
        self._starts = StartListener(args["model_name"], args["model_version"])
        # A profile shows Triton's stub collecting garbage between executes; this leaves out what is loaded.
        gc.freeze()

    def execute(self, requests: list[Any]) -> list[Any]:
        for request_id in self._starts.read():
            self._streams.start(request_id)
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        self._starts.close()

    def _respond(self, request: Any) -> Any:
        try:
            tokens = pb.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
            lengths = pb.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
            texts = self._texts(request.request_id(), tokens, lengths)
        except Exception as error:  # the process boundary: other requests share this batch
            pb.Logger.log_error(f"postprocessing failed: {error!r}")
            return pb.InferenceResponse(error=pb.TritonError(f"The answer cannot be decoded: {error}."))
        return pb.InferenceResponse([pb.Tensor("OUTPUT", texts)])

    def _texts(self, request_id: str, tokens: Any, lengths: Any) -> Any:
        """Tokens [batch, beams, n] and lengths [batch, beams] -> bytes [batch, beams]."""
        texts = np.empty(lengths.shape, dtype=object)
        for row, index in enumerate(np.ndindex(lengths.shape)):
            ids = tokens[index][: lengths[index]].tolist()
            texts[index] = self._streams.decode(request_id, row, ids).encode()
        return texts
