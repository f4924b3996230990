"""The documented API: /api/v1."""

from __future__ import annotations

import time
from typing import Any

import orjson

from common.errors import EwError, UsageError
from proxy.engine_request import Sampling
from proxy.generation import Generation, GenerationRequest
from proxy.http import Receive, Scope, Send, client_connection, header, read_body, send_json
from proxy.models import ServedModel
from proxy.schema import InferenceRequest, parse
from proxy.service import Context, Service, new_engine_id
from proxy.streaming import stream, whole_text
from proxy.tracing import as_headers, client_context

GUIDE_TYPES = (("json_schema", "json_schema"), ("regex", "regex"), ("grammar", "ebnf_grammar"))
DONE = b"data: [DONE]\n\n"
NDJSON = b"application/x-ndjson"


class EventFraming:
    """Server-sent events, `data: {"id","modelId","text"}`, or the same objects one a line."""

    def __init__(self, request_id: str, model_id: str, *, ndjson: bool) -> None:
        self._names = {"id": request_id, "modelId": model_id}
        self._before, self._after = (b"", b"\n") if ndjson else (b"data: ", b"\n\n")
        self._done = b"" if ndjson else DONE
        self._prefix = self._before + orjson.dumps(self._names)[:-1] + b',"text":'
        self._suffix = b"}" + self._after
        self.content_type = NDJSON if ndjson else b"text/event-stream; charset=utf-8"

    def begin(self) -> bytes:
        return b""

    def delta(self, text: str) -> bytes:
        return self._prefix + orjson.dumps(text) + self._suffix

    def end(self, generation: Generation) -> bytes:
        return self._event(receipt(generation)) + self._done

    def failure(self, generation: Generation, error: EwError) -> bytes:
        return self._event({**receipt(generation), "error": error.as_dict()})

    def _event(self, fields: dict[str, Any]) -> bytes:
        document = {**self._names, "text": "", **fields}
        return self._before + orjson.dumps(document) + self._after


class InferenceRoute:
    """POST /api/v1/inference and /api/v1/inference/stream."""

    def __init__(self, service: Service, *, streams: bool) -> None:
        self._service = service
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, context, client = self._service, scope["ew"], client_connection(scope)
        settings = service.settings
        body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout)
        fields: InferenceRequest = parse(InferenceRequest, body)
        if fields.request_id is not None:
            context.request_id = fields.request_id
        request = make_request(service, fields, scope)
        context.model_id = request.model.model_id
        async with service.run(request, context) as generation:
            if self._streams:
                ndjson = NDJSON.decode() in header(scope, b"accept")
                framing = EventFraming(context.request_id, context.model_id, ndjson=ndjson)
                await stream(generation, framing, send, client, settings.header_hold)
            else:
                text = await whole_text(generation, client)
                await send_json(send, 200, _answer(generation, context, text))


def receipt(generation: Generation) -> dict[str, Any]:
    """What every answer ends with."""
    fields: dict[str, Any] = {
        "finishReason": generation.finish_reason,
        "usage": generation.usage(),
        "timings": generation.timings.receipt(),
    }
    if generation.pseudo:
        fields["streamMode"] = "pseudo"
    if generation.stop_reason is not None:
        fields["stopReason"] = generation.stop_reason
    if generation.request.sampling.log_probs:
        fields["logprobs"] = generation.log_probs[: generation.completion_tokens]
    return fields


def make_request(service: Service, fields: InferenceRequest, scope: Scope) -> GenerationRequest:
    """Resolve a validated body against its model: token ids, limits, sampling.

    Raises:
        UsageError: no such model, the prompt does not fit, or a field the model cannot serve.
    """
    model = service.registry.get(fields.model_id)
    prompt_ids = _prompt_ids(model, fields)
    return GenerationRequest(
        model=model,
        engine_id=new_engine_id(),
        prompt_ids=prompt_ids,
        max_tokens=model.output_limit(len(prompt_ids), fields.max_tokens),
        sampling=_sampling(model, fields),
        stop=as_tuple(fields.stop),
        timeout=service.timeout(fields.timeout_ms),
        priority=fields.priority,
        trace_headers=as_headers(client_context(scope)),
    )


def as_tuple(values: str | list[str] | None) -> tuple[str, ...]:
    if values is None:
        return ()
    return (values,) if isinstance(values, str) else tuple(values)


def _prompt_ids(model: ServedModel, fields: InferenceRequest) -> list[int]:
    if fields.messages is not None:
        return model.encode_chat([message.model_dump() for message in fields.messages])
    prompt = fields.prompt or ""
    if fields.raw or model.template is None:
        return model.encode_raw(prompt)
    if not prompt:
        raise UsageError("The prompt is empty.", hint="Send at least one character.", code="prompt_empty")
    return model.encode_chat([{"role": "user", "content": prompt}])


def _sampling(model: ServedModel, fields: InferenceRequest) -> Sampling:
    guide_type, guide = _guide(fields)
    return Sampling(
        **choice(model, fields),
        seed=fields.seed,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        min_tokens=fields.min_tokens,
        log_probs=fields.logprobs,
        bad_words=model.encode_words(tuple(fields.bad_words or ())),
        guide_type=guide_type,
        guide=guide,
    )


def choice(model: ServedModel, fields: Any) -> dict[str, Any]:
    """Temperature, top-k, top-p and repetition penalty: what is not given comes from the model's own
    generation_config. A top-p or top-k without a temperature asks for sampling at 1."""
    defaults = model.defaults
    penalty = fields.repetition_penalty
    chosen: dict[str, Any] = {
        "temperature": fields.temperature,
        "top_k": fields.top_k,
        "top_p": fields.top_p,
        "repetition_penalty": defaults.repetition_penalty if penalty is None else penalty,
    }
    if fields.temperature is None:
        sampled = fields.top_p is not None or fields.top_k is not None
        chosen["temperature"] = defaults.temperature or (1.0 if sampled else 0.0)
    if fields.top_k is None:
        chosen["top_k"] = defaults.top_k
    if fields.top_p is None:
        chosen["top_p"] = defaults.top_p
    return chosen


def _guide(fields: InferenceRequest) -> tuple[str | None, str | None]:
    if fields.guided is None:
        return None, None
    for name, guide_type in GUIDE_TYPES:
        guide = getattr(fields.guided, name)
        if guide is not None:
            return guide_type, guide if isinstance(guide, str) else orjson.dumps(guide).decode()
    return None, None


def _answer(generation: Generation, context: Context, text: str) -> dict[str, Any]:
    return {
        "id": context.request_id,
        "modelId": context.model_id,
        "text": text,
        "created": int(time.time()),
        **receipt(generation),
    }
