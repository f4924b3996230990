"""An OpenAI request made ready: token ids, limits, sampling, one generation a choice."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import orjson

from common.errors import UsageError
from proxy.engine_request import Sampling
from proxy.generation import GenerationRequest
from proxy.http import Scope
from proxy.models import ServedModel
from proxy.native import as_tuple, choice
from proxy.openai_api.schema import ChatMessage, ChatRequest, CommonFields, CompletionRequest, NamedTool
from proxy.openai_api.tools import ToolFormat, tool_format
from proxy.service import Service, new_engine_id
from proxy.tracing import as_headers, client_context


@dataclass(frozen=True)
class Plan:
    """What to run: one request a choice.

    `prefix` begins the answer of a forced tool call; of one answer's calls the first `most_calls` count.
    """

    model: ServedModel
    requests: tuple[GenerationRequest, ...]
    prompt_texts: tuple[str, ...] = ("",)
    tools: ToolFormat | None = None
    tool_names: frozenset[str] = frozenset()
    prefix: str = ""
    most_calls: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, however many choices it has."""
        each = len(self.requests) // len(self.prompt_texts)
        return sum(len(request.prompt_ids) for request in self.requests[::each])


def plan_chat(service: Service, fields: ChatRequest, scope: Scope) -> Plan:
    """Raises UsageError for what this model or engine cannot do."""
    model = service.registry.get(fields.model)
    form, names = _tools(model, fields)
    prefix = _forced(fields, form)
    prompt_ids = _chat_ids(model, fields, prefix, with_tools=form is not None)
    sampling = replace(_sampling(model, fields), **_chat_sampling(fields))
    limit = fields.max_completion_tokens or fields.max_tokens
    base = _request(service, model, fields, prompt_ids, limit, sampling, scope)
    if form is not None and form.show_special:
        base = replace(base, show_special=True)
    most = 1 if fields.parallel_tool_calls is False else None
    return Plan(model, _choices(base, fields.n), tools=form, tool_names=names, prefix=prefix, most_calls=most)


def plan_completion(service: Service, fields: CompletionRequest, scope: Scope) -> Plan:
    """Raises UsageError for what this model or engine cannot do."""
    model = service.registry.get(fields.model)
    if fields.suffix:
        raise _unsupported("suffix")
    if fields.best_of not in (None, fields.n):
        raise _unsupported("best_of")
    prompts = _prompts(model, fields.prompt)
    sampling = replace(_sampling(model, fields), log_probs=fields.logprobs is not None)
    limit = 16 if fields.max_tokens is None else fields.max_tokens  # the API's own default
    requests: list[GenerationRequest] = []
    for ids, _ in prompts:
        base = _request(service, model, fields, ids, limit, sampling, scope)
        requests += _choices(base, fields.n)
    return Plan(model, tuple(requests), tuple(text for _, text in prompts))


def _request(
    service: Service,
    model: ServedModel,
    fields: CommonFields,
    prompt_ids: list[int],
    limit: int | None,
    sampling: Sampling,
    scope: Scope,
) -> GenerationRequest:
    return GenerationRequest(
        model=model,
        engine_id=new_engine_id(),
        prompt_ids=prompt_ids,
        max_tokens=model.output_limit(len(prompt_ids), limit),
        sampling=sampling,
        stop=as_tuple(fields.stop),
        timeout=service.timeout(None),
        trace_headers=as_headers(client_context(scope)),
    )


def _choices(base: GenerationRequest, count: int) -> tuple[GenerationRequest, ...]:
    """One request a choice: each with an id of its own and, with a seed, a seed of its own."""
    seed = base.sampling.seed
    return tuple(
        replace(
            base,
            engine_id=new_engine_id(),
            sampling=replace(base.sampling, seed=None if seed is None else seed + index),
        )
        for index in range(count)
    )


def _sampling(model: ServedModel, fields: CommonFields) -> Sampling:
    return Sampling(
        **choice(model, fields),
        seed=None if fields.seed is None else fields.seed % (1 << 63),
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        min_tokens=fields.min_tokens,
        token_bias=_token_bias(model, fields.logit_bias),
    )


def _chat_sampling(fields: ChatRequest) -> dict[str, Any]:
    if fields.top_logprobs:
        raise _unsupported("top_logprobs above 0", "the engine reports the chosen token only")
    chosen: dict[str, Any] = {"log_probs": bool(fields.logprobs)}
    form = fields.response_format
    if form is None or form.type == "text":
        return chosen
    if form.type == "json_object":
        return {**chosen, "guide_type": "json"}
    if form.json_schema is None:
        raise UsageError("response_format: json_schema is required for this type.", code="invalid_field")
    guide = orjson.dumps(form.json_schema.json_schema).decode()
    return {**chosen, "guide_type": "json_schema", "guide": guide}


def _token_bias(model: ServedModel, bias: dict[str, float] | None) -> tuple[float, ...]:
    if not bias:
        return ()
    size = model.vocab_size
    values = [0.0] * size
    for token, value in bias.items():
        if not token.isdecimal() or int(token) >= size:
            raise UsageError(
                f"logit_bias: found token {token!r}; allowed are 0 to {size - 1}.", code="invalid_field"
            )
        values[int(token)] = value
    return tuple(values)


def _prompts(model: ServedModel, prompt: Any) -> list[tuple[list[int], str]]:
    """(ids, text) of each prompt; a prompt may be text or ids, or a list of either."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    return [_prompt(model, one) for one in prompt]


def _prompt(model: ServedModel, prompt: str | list[int]) -> tuple[list[int], str]:
    if isinstance(prompt, str):
        return model.encode_raw(prompt), prompt
    size = model.vocab_size
    if max(prompt) >= size:
        raise UsageError(
            f"prompt: found token {max(prompt)}; allowed are 0 to {size - 1}.", code="invalid_field"
        )
    return prompt, model.tokenizer.decode(prompt)


def _tools(model: ServedModel, fields: ChatRequest) -> tuple[ToolFormat | None, frozenset[str]]:
    if not fields.tools or fields.tool_choice == "none":
        return None, frozenset()
    form = tool_format(model)
    if form is None:
        raise _unsupported("tools", f"the chat template of {model.model_id} knows no tools")
    names = frozenset(tool.function.name for tool in fields.tools)
    wanted = fields.tool_choice
    if isinstance(wanted, NamedTool) and wanted.function.name not in names:
        raise UsageError(
            f"tool_choice: found {wanted.function.name!r}; allowed are {', '.join(sorted(names))}.",
            code="invalid_field",
        )
    return form, names


def _forced(fields: ChatRequest, form: ToolFormat | None) -> str:
    """How the answer must begin, so that it is a call of the wanted tool."""
    if form is None:
        return ""
    if isinstance(fields.tool_choice, NamedTool):
        return form.opening.replace("{name}", fields.tool_choice.function.name)
    if fields.tool_choice != "required":
        return ""
    if fields.tools is not None and len(fields.tools) == 1:
        return form.opening.replace("{name}", fields.tools[0].function.name)
    if not form.opening_any:
        raise _unsupported("tool_choice required with several tools", "name one of them")
    return form.opening_any


def _chat_ids(model: ServedModel, fields: ChatRequest, prefix: str, *, with_tools: bool) -> list[int]:
    variables: dict[str, Any] = dict(fields.chat_template_kwargs or {})
    if with_tools and fields.tools:
        variables["tools"] = [tool.model_dump(exclude_none=True) for tool in fields.tools]
    ids = model.encode_chat([_message(message) for message in fields.messages], **variables)
    if prefix:
        ids = ids + model.tokenizer.encode(prefix, add_special_tokens=False).ids
    return ids


def _message(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates expect it: plain text, tool arguments as objects."""
    document: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(message),
    }
    if message.name is not None:
        document["name"] = message.name
    if message.tool_call_id is not None:
        document["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        document["tool_calls"] = [
            {**call.model_dump(), "function": _function(call.function.name, call.function.arguments)}
            for call in message.tool_calls
        ]
    return document


def _content(message: ChatMessage) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    return message.content or ""


def _function(name: str, arguments: str) -> dict[str, Any]:
    try:
        return {"name": name, "arguments": json.loads(arguments)}
    except ValueError:
        return {"name": name, "arguments": arguments}


def _unsupported(feature: str, why: str = "") -> UsageError:
    return UsageError(f"{feature} is not supported here.", why=why, code="unsupported")
