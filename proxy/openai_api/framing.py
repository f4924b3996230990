"""The documents of the OpenAI API: chunks of a stream, and whole answers."""

from __future__ import annotations

import itertools
import time
from typing import Any, Literal

import orjson

from common.errors import EwError
from proxy.generation import Generation
from proxy.http import error_document
from proxy.openai_api.plan import Plan
from proxy.openai_api.tools import Call, CallWatch, split

DONE = b"data: [DONE]\n\n"
Kind = Literal["chat", "completion"]


class Documents:
    """What all documents of one request share."""

    def __init__(self, request_id: str, kind: Kind, plan: Plan) -> None:
        chat = kind == "chat"
        self.kind = kind
        self.plan = plan
        self.request_id = request_id
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            "created": int(time.time()),
            "model": plan.model.model_id,
        }
        self._object = "chat.completion" if chat else "text_completion"

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {**self._head, "object": self._object, "choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = self._object + (".chunk" if self.kind == "chat" else "")
        return _event({**self._head, "object": kind, "choices": choices, **more})

    def chunk_around_text(self, index: int) -> tuple[bytes, bytes]:
        """The bytes before and after the text of a plain delta, so that a token costs one join."""
        field: dict[str, Any] = {"delta": {"content": ""}} if self.kind == "chat" else {"text": ""}
        choice = {"index": index, **field, "logprobs": None, "finish_reason": None}
        whole = self.chunk([choice])
        mark = b'"content":"' if self.kind == "chat" else b'"text":"'
        cut = whole.index(mark) + len(mark) - 1
        return whole[:cut], whole[cut + 2 :]


class ChoiceWriter:
    """Turns the texts of one choice into chunks. Text that may become a tool call is held back."""

    def __init__(self, documents: Documents, index: int, generation: Generation) -> None:
        self._documents = documents
        self._index = index
        self._generation = generation
        self._before, self._after = documents.chunk_around_text(index)
        self._log_probs = generation.request.sampling.log_probs
        self._shown_tokens = 0
        self._offset = 0
        plan = documents.plan
        self._calls = CallWatch(plan.tools, plan.tool_names, plan.prefix) if plan.tools else None

    def begin(self) -> bytes:
        if self._documents.kind != "chat":
            return b""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, text: str) -> bytes:
        shown = text if self._calls is None else self._calls.push(text)
        if not shown:
            return b""
        if self._log_probs:
            return self._chunk({"content": shown}, logprobs=self._new_log_probs())
        return self._before + orjson.dumps(shown) + self._after

    def end(self) -> bytes:
        generation = self._generation
        shown, calls = ("", []) if self._calls is None else self._calls.rest()
        chunks = [self._before + orjson.dumps(shown) + self._after] if shown else []
        if calls:
            counted = calls[: self._documents.plan.most_calls]
            documents = [call.document(index) for index, call in enumerate(counted)]
            chunks.append(self._chunk({"tool_calls": documents}))
        finish = "tool_calls" if calls else generation.finish_reason
        log_probs = self._new_log_probs() if self._log_probs else None
        chunks.append(self._chunk({}, logprobs=log_probs, finish_reason=finish))
        return b"".join(chunks)

    def _chunk(self, delta: dict[str, Any], **fields: Any) -> bytes:
        chat = self._documents.kind == "chat"
        body = {"delta": delta} if chat else {"text": delta.get("content", "")}
        choice = {"index": self._index, **body, "logprobs": None, "finish_reason": None, **fields}
        return self._documents.chunk([choice])

    def _new_log_probs(self) -> dict[str, Any] | None:
        shown, self._shown_tokens = self._shown_tokens, self._generation.completion_tokens
        found = log_probs(self._documents.kind, self._generation, shown, self._offset)
        self._offset += sum(len(token) for token in found.get("tokens", ()))
        return found


def whole_choice(documents: Documents, index: int, generation: Generation, text: str) -> dict[str, Any]:
    """One choice of an answer that does not stream."""
    plan = documents.plan
    probabilities = None
    if generation.request.sampling.log_probs:
        probabilities = log_probs(documents.kind, generation, 0)
    choice: dict[str, Any] = {"index": index, "logprobs": probabilities}
    if documents.kind == "completion":
        return {**choice, "text": text, "finish_reason": generation.finish_reason}
    calls: list[Call] = []
    if plan.tools is not None:
        text, calls = split(plan.tools, plan.prefix + text, plan.tool_names)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message["content"] = text or None
        message["tool_calls"] = [call.document() for call in calls[: plan.most_calls]]
    return {
        **choice,
        "message": message,
        "finish_reason": "tool_calls" if calls else generation.finish_reason,
    }


def log_probs(kind: Kind, generation: Generation, start: int, offset: int = 0) -> dict[str, Any]:
    """Log probabilities of the chosen tokens from `start` on, in the form of the API.

    `offset` is where the first of them begins, in characters of the text.
    """
    ids = generation.token_ids[start:]
    values = generation.log_probs[start : start + len(ids)]
    tokenizer = generation.request.model.tokenizer
    texts = [tokenizer.decode([token_id], skip_special_tokens=False) for token_id in ids]
    if kind == "completion":
        ends = itertools.accumulate((len(text) for text in texts), initial=offset)
        offsets = list(itertools.islice(ends, len(texts)))
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}
    content = [
        {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in zip(texts, values, strict=False)
    ]
    return {"content": content, "refusal": None}


def usage(plan: Plan, generations: list[Generation]) -> dict[str, int]:
    completion = sum(generation.completion_tokens for generation in generations)
    prompt = plan.prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def failure(error: EwError, request_id: str) -> bytes:
    """The typed end of a stream that is not whole; no [DONE] follows."""
    return _event(error_document(error, request_id))


def _event(document: Any) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"
