"""One text request: its tensors in upstream's llmapi form; each answer is the whole text so far."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from live_requests import LiveRequest, Sequence
from prompts import Prompts
from protocol import Finish, Sampling, Status
from request_tensors import BadRequest, Inputs, Prompt, Request

from common.detokenize import IncrementalDecoder, TokenTexts
from common.errors import UsageError
from proxy.stops import StopMatcher

PREFIX = "sampling_param_"
DEFAULT_MAX_TOKENS = 32  # that of tensorrt_llm.SamplingParams
UNSUPPORTED = ("image_url", "lora_id", "lora_name", "lora_path", "lora_ckpt_source")
REASONS = {
    Finish.NONE: "None",
    Finish.END_ID: "stop",
    Finish.STOP_WORDS: "stop",
    Finish.LENGTH: "length",
    Finish.CANCELLED: "cancelled",
}


@dataclass(frozen=True)
class Wishes:
    """What a client asks for beside the tokens."""

    stops: tuple[str, ...]
    echo: str  # the prompt, where it is to stand before the answer
    finish_reason: bool
    stop_reason: bool
    cumulative_logprob: bool


def parse_request(inputs: Inputs, prompts: Prompts, *, as_chat: bool) -> tuple[Request, Wishes]:
    """The request in `inputs`, whose tensors have a batch of one in front, tokenized.

    Raises:
        BadRequest: a tensor is missing, has more than one value, or asks for what no worker can do.
    """
    for name in UNSUPPORTED:
        if name in inputs:
            raise BadRequest(f"{name}: this engine supports neither adapters nor images.", Status.UNSUPPORTED)
    best_of = inputs.scalar(f"{PREFIX}best_of", 0)
    if best_of not in (None, 1):
        raise BadRequest(f"{PREFIX}best_of is {best_of}; this engine supports 1 only.", Status.UNSUPPORTED)
    texts = _texts(inputs, "text_input")
    if len(texts) != 1 or not texts[0]:
        raise BadRequest("text_input takes one prompt, which must not be empty.")
    request = Request(
        prompts=(Prompt(_tokens(prompts, texts[0], as_chat), _sampling(inputs, prompts)),),
        num_return_sequences=1,
        streaming=inputs.flag("streaming"),
        exclude_input=True,
        num_input_tokens=False,
        num_output_tokens=False,
        perf_metrics=inputs.flag(f"{PREFIX}return_perf_metrics"),
    )
    return request, _wishes(inputs, texts[0])


def _wishes(inputs: Inputs, text: str) -> Wishes:
    return Wishes(
        stops=tuple(word for word in _texts(inputs, f"{PREFIX}stop") if word),
        echo="" if inputs.flag(f"{PREFIX}exclude_input_from_output") else text,
        finish_reason=inputs.flag("return_finish_reason"),
        stop_reason=inputs.flag("return_stop_reason"),
        cumulative_logprob=inputs.flag("return_cumulative_logprob"),
    )


def _tokens(prompts: Prompts, text: str, as_chat: bool) -> array[int]:
    try:
        return array("i", prompts.encode(text, as_chat=as_chat))
    except UsageError as error:
        raise BadRequest(" ".join(part for part in (error.what, error.hint) if part)) from None


def _sampling(inputs: Inputs, prompts: Prompts) -> Sampling:
    def given(name: str) -> Any:
        return inputs.scalar(f"{PREFIX}{name}", 0)

    temperature, top_k, top_p = given("temperature"), given("top_k"), given("top_p")
    if temperature and top_k is None and top_p is None:
        top_p = 1.0  # a temperature alone means to sample, as in tensorrt_llm.SamplingParams
    ends = prompts.end_ids
    return Sampling(
        max_tokens=DEFAULT_MAX_TOKENS if given("max_tokens") is None else given("max_tokens"),
        end_id=ends[0] if ends else None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        presence_penalty=given("presence_penalty"),
        frequency_penalty=given("frequency_penalty"),
        seed=given("seed"),
        stop_words=tuple((token,) for token in ends[1:]),
        log_probs=inputs.flag("return_cumulative_logprob"),
    )


def _texts(inputs: Inputs, name: str) -> list[str]:
    values = np.ravel(inputs.row(name, 0)).tolist() if name in inputs else []
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError as error:
        raise BadRequest(f"{name} is not UTF-8: {error}.") from None


class TextRequest(LiveRequest):
    """A live request whose answers are text. `end` stops the engine when a stop string was made."""

    def __init__(
        self,
        triton_id: str,
        sender: Any,
        request: Request,
        engine_id: int,
        wishes: Wishes,
        texts: TokenTexts,
        end: Callable[[int], None],
    ) -> None:
        super().__init__(triton_id, sender, request, engine_id)
        self._wishes = wishes
        self._decoder = IncrementalDecoder(texts)
        self._matcher = StopMatcher(wishes.stops)
        self._end = end
        self._end_words = {word[0] for word in request.prompts[0].sampling.stop_words}
        self._stop_token: int | None = None
        self._text = wishes.echo

    def _respond(self, sequence: Sequence) -> None:
        runs = sequence.finish == Finish.NONE
        self._read(sequence)
        if runs and self._matcher.matched is not None:
            sequence.finish = Finish.STOP_WORDS
            self._end(sequence.engine_id)
        super()._respond(sequence)

    def _read(self, sequence: Sequence) -> None:
        """Add the text of the tokens that have come."""
        tokens, sequence.tokens = sequence.tokens, array("i")
        if self._matcher.matched is None:
            self._stop_token = next((t for t in tokens if t in self._end_words), self._stop_token)
            kept = (token for token in tokens if token not in self._end_words)
            self._text += self._matcher.push(self._decoder.push(kept))

    def _outputs(self, sequence: Sequence) -> Iterator[Any]:
        if sequence.finish != Finish.NONE and self._matcher.matched is None:
            self._text += self._matcher.flush()
        yield _strings("text_output", self._text)
        if self._wishes.finish_reason:
            yield _strings("finish_reason", REASONS[sequence.finish])
        if self._wishes.stop_reason:
            yield _strings("stop_reason", str(self._matcher.matched or self._stop_token))
        if self._wishes.cumulative_logprob:
            yield pb.Tensor("cumulative_logprob", np.array([sequence.cum_log_prob], dtype=np.float32))
        if self.request.perf_metrics:
            for tensor in self._timings(sequence):
                yield pb.Tensor(tensor.name(), tensor.as_numpy().reshape(-1))


def _strings(name: str, value: str) -> Any:
    return pb.Tensor(name, np.array([value.encode()], dtype=object))
