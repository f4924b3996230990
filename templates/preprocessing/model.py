"""Triton model: a prompt and its options -> token ids for the engine."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # our modules lie beside this file

import numpy as np
import triton_python_backend_utils as pb
from prompts import Prompts, model_parameters, word_list
from stream_starts import StartAnnouncer

from common.errors import UsageError


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._prompts = Prompts.of_model(args, model_parameters(args))
        self._starts = StartAnnouncer(args["model_name"], args["model_version"])
        # A profile shows Triton's stub collecting garbage between executes; this leaves out what is loaded.
        gc.freeze()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        self._starts.close()

    def _respond(self, request: Any) -> Any:
        try:
            tensors = self._tensors(request)
        except UsageError as error:
            message = " ".join(part for part in (error.what, error.hint) if part)
            return pb.InferenceResponse(error=pb.TritonError(message, pb.TritonError.INVALID_ARG))
        except Exception as error:  # the process boundary: other requests share this batch
            pb.Logger.log_error(f"preprocessing failed: {error!r}")
            return pb.InferenceResponse(error=pb.TritonError(f"The prompt cannot be prepared: {error}."))
        self._starts.announce(request.request_id())
        return pb.InferenceResponse([pb.Tensor(name, value) for name, value in tensors.items()])

    def _tensors(self, request: Any) -> dict[str, Any]:
        as_chat = self._prompts.is_chat(request)
        ids = [self._prompts.encode(text, as_chat=as_chat) for text in _texts(request, "QUERY")]
        end_ids = self._end_ids(request, len(ids))
        tensors = {
            "INPUT_ID": _padded(ids, self._prompts.pad_id),
            "REQUEST_INPUT_LEN": np.array([[len(row)] for row in ids], dtype=np.int32),
            "REQUEST_OUTPUT_LEN": _input(request, "REQUEST_OUTPUT_LEN"),
            "OUT_END_ID": end_ids,
            "OUT_PAD_ID": self._pad_ids(request, len(ids)),
            "STOP_WORDS_IDS": self._words(request, "STOP_WORDS_DICT", len(ids), self._other_end_ids(request)),
            "BAD_WORDS_IDS": self._words(request, "BAD_WORDS_DICT", len(ids), []),
            **self._decoder_query(request),
            **self._bias(request, len(ids)),
            **self._prompt_table(request, ids),
        }
        return {name: value for name, value in tensors.items() if value is not None}

    def _end_ids(self, request: Any, rows: int) -> Any:
        given = _input(request, "END_ID")
        if given is not None or not self._prompts.end_ids:
            return given
        return np.full((rows, 1), self._prompts.end_ids[0], dtype=np.int32)

    def _pad_ids(self, request: Any, rows: int) -> Any:
        given = _input(request, "PAD_ID")
        return np.full((rows, 1), self._prompts.pad_id, dtype=np.int32) if given is None else given

    def _other_end_ids(self, request: Any) -> list[list[int]]:
        """The engine takes one end id; the others end an answer as stop words of one token."""
        if _input(request, "END_ID") is not None:
            return []
        return [[token] for token in self._prompts.end_ids[1:]]

    def _words(self, request: Any, name: str, rows: int, always: list[list[int]]) -> Any:
        """[batch, 2, n], or None where there are no words at all."""
        given = _strings(request, name)
        lists = [
            word_list(always + self._prompts.encode_words(given[row] if given is not None else []))
            for row in range(rows)
        ]
        longest = max(len(flat) for flat, _ in lists)
        if not longest:
            return None
        padded = np.full((rows, 2, longest), -1, dtype=np.int32)
        padded[:, 0] = 0
        for row, (flat, ends) in enumerate(lists):
            padded[row, :, : len(flat)] = [flat, ends]
        return padded

    def _decoder_query(self, request: Any) -> dict[str, Any]:
        if _input(request, "DECODER_QUERY") is None:
            return {}
        ids = [self._prompts.encode(text, as_chat=False) for text in _texts(request, "DECODER_QUERY")]
        lengths = np.array([[len(row)] for row in ids], dtype=np.int32)
        return {
            "DECODER_INPUT_ID": _padded(ids, self._prompts.pad_id),
            "REQUEST_DECODER_INPUT_LEN": lengths,
        }

    def _bias(self, request: Any, rows: int) -> dict[str, Any]:
        words, weights = _strings(request, "EMBEDDING_BIAS_WORDS"), _input(request, "EMBEDDING_BIAS_WEIGHTS")
        if words is None and weights is None:
            return {}
        if words is None or weights is None:
            raise UsageError("Embedding bias needs both words and weights.")
        bias = np.zeros((rows, self._prompts.vocabulary_size), dtype=np.float32)
        for row in range(rows):
            for token, value in self._prompts.bias(words[row], weights[row].tolist()).items():
                bias[row, token] = value
        return {"EMBEDDING_BIAS": bias}

    def _prompt_table(self, request: Any, ids: list[list[int]]) -> dict[str, Any]:
        """Ids beyond the vocabulary stand for rows of a prompt table; they carry the table's extra id."""
        extra = _input(request, "PROMPT_TABLE_EXTRA_ID")
        if extra is None:
            return {}
        tokens = _padded(ids, self._prompts.pad_id)
        is_virtual = tokens >= self._prompts.vocabulary_size
        return {"OUT_PROMPT_TABLE_EXTRA_IDS": np.where(is_virtual, extra, 0).astype(np.uint64)}


def _input(request: Any, name: str) -> Any:
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _texts(request: Any, name: str) -> list[str]:
    """A string tensor with one text a row."""
    return ["".join(row) for row in _strings(request, name) or []]


def _strings(request: Any, name: str) -> list[list[str]] | None:
    """A string tensor as lists of non-empty texts, one a row; None where it was not sent.

    Raises:
        UsageError: it is not UTF-8.
    """
    values = _input(request, name)
    if values is None:
        return None
    try:
        return [[value.decode() for value in row if value] for row in values]
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8: {error}.") from None


def _padded(rows: list[list[int]], pad_id: int) -> Any:
    padded = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
