"""A request to `M-tensorrt_llm`: its tensors as the JSON that generate_stream takes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; None leaves the engine's default. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    log_probs: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    guide_type: str | None = None
    guide: str | None = None
    token_bias: tuple[float, ...] = ()

    def tensors(self) -> dict[str, Any]:
        tensors: dict[str, Any] = {
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "min_tokens": self.min_tokens,
            "return_log_probs": self.log_probs or None,
            "bad_words_list": words_list(self.bad_words) or None,
            "embedding_bias": list(self.token_bias) or None,
            "guided_decoding_guide_type": self.guide_type,
            "guided_decoding_guide": self.guide,
            **self._choice(),
        }
        return {name: value for name, value in tensors.items() if value is not None}

    def _choice(self) -> dict[str, Any]:
        if self.temperature <= 0.0 or self.top_k == 1:
            return {"runtime_top_k": 1}
        return {
            "temperature": self.temperature,
            # TensorRT-LLM is greedy when neither is set, and its default seed is the same for every request.
            "runtime_top_k": self.top_k or 0,
            "runtime_top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": random.getrandbits(63) if self.seed is None else self.seed,
        }


@dataclass(frozen=True)
class EngineRequest:
    """One generation in token ids; `request_id` must be unique among the live ones."""

    model_id: str
    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    end_ids: tuple[int, ...]
    pad_id: int | None
    sampling: Sampling
    priority: int | None = None
    streaming: bool = True

    def body(self) -> bytes:
        tensors = {
            "id": self.request_id,
            "input_ids": self.prompt_ids,
            "input_lengths": len(self.prompt_ids),
            "request_output_len": self.max_tokens,
            "streaming": self.streaming,
            "exclude_input_in_output": True,
            **self.sampling.tensors(),
        }
        if self.end_ids:
            tensors["end_id"] = self.end_ids[0]
            tensors["pad_id"] = self.end_ids[0] if self.pad_id is None else self.pad_id
        if len(self.end_ids) > 1:
            tensors["stop_words_list"] = words_list(tuple((end,) for end in self.end_ids[1:]))
        if self.priority is not None:
            tensors["priority"] = self.priority
        return orjson.dumps(tensors)


def words_list(words: tuple[tuple[int, ...], ...]) -> list[int]:
    """[2, N] flattened: row 0 all ids, row 1 the end offset of each word, padded with -1."""
    ids = [token for word in words for token in word]
    offsets: list[int] = []
    for word in words:
        offsets.append(len(word) + (offsets[-1] if offsets else 0))
    return ids + offsets + [-1] * (len(ids) - len(offsets))
