"""The fields of the documented API and what is wrong with a request that has others."""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from common.errors import UsageError

MAX_STOPS = 16
# What pydantic calls it when a value is no object.
OBJECT_WANTED = ("model_type", "dict_type", "model_attributes_type")
Text = Annotated[str, StringConstraints(min_length=1)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, strict=True, protected_namespaces=()
    )


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Guided(Strict):
    """Constrain the answer; needs an engine with guided decoding."""

    json_schema: dict[str, Any] | None = Field(None, alias="json", description="JSON schema")
    regex: Text | None = None
    grammar: Text | None = Field(None, description="EBNF grammar")

    @model_validator(mode="after")
    def _one(self) -> Guided:
        if sum(value is not None for value in (self.json_schema, self.regex, self.grammar)) != 1:
            raise ValueError("give exactly one of json, regex, grammar")
        return self


class SamplingFields(Strict):
    """What both routes of the documented API share."""

    max_tokens: int | None = Field(None, ge=1, le=1 << 20, description="Most tokens to generate.")
    temperature: float | None = Field(None, ge=0, le=10, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 20, description="0 is all.")
    min_tokens: int | None = Field(None, ge=0, le=1 << 20)
    stop: ShortText | Annotated[list[ShortText], Field(max_length=MAX_STOPS)] | None = None
    bad_words: Annotated[list[ShortText], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


class InferenceRequest(SamplingFields):
    """Body of POST /api/v1/inference and /api/v1/inference/stream."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
                {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
            ]
        }
    )

    model_id: Text = Field(description="An id from GET /api/v1/models.")
    prompt: str | None = Field(None, description="A user's turn, or plain text with raw.")
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    logprobs: bool = False
    raw: bool = Field(False, description="Send the prompt without the chat template.")
    request_id: Id | None = None
    priority: int | None = Field(None, ge=0, le=1 << 31, description="Lower is sooner; 0 is the default.")
    timeout_ms: int | None = Field(None, ge=1, le=86_400_000)
    guided: Guided | None = None

    @model_validator(mode="after")
    def _one_input(self) -> InferenceRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.raw and self.messages is not None:
            raise ValueError("raw goes with prompt, not with messages")
        return self


def parse_json(body: bytes) -> Any:
    """The JSON of a request body.

    Raises:
        UsageError: not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UsageError(
            "The request body is not JSON.",
            why=str(error),
            hint='Send an object such as {"modelId": "...", "prompt": "..."} in UTF-8.',
            code="invalid_json",
        ) from None


def parse(model: type[Any], body: bytes) -> Any:
    """A validated request.

    Raises:
        UsageError: names each wrong field, what was found, and what is allowed.
    """
    document = parse_json(body)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _usage_error(model, error) from None


def _usage_error(model: type[BaseModel], error: ValidationError) -> UsageError:
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    refusal = UsageError(
        "; ".join(dict.fromkeys(_describe(model, problem) for problem in problems[:5])) + ".",
        hint="/openapi.json lists every field.",
        code="unknown_field" if first["type"] == "extra_forbidden" else "invalid_field",
    )
    refusal.field = _path(first["loc"])  # type: ignore[attr-defined]
    return refusal


def _describe(model: type[BaseModel], problem: Any) -> str:
    path = _path(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown field{_nearest(model, str(problem['loc'][-1]), len(problem['loc']))}"
    if problem["type"] == "missing":
        return f"{path}: required, but not there"
    if problem["type"] == "value_error":
        return f"{path}: {problem['msg'].removeprefix('Value error, ')}"
    found = json.dumps(problem["input"], ensure_ascii=True, default=str)
    if problem["type"] in OBJECT_WANTED:
        return f"{path}: found {found[:80]}; a JSON object is needed"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{path}: found {found[:80]}; {message}"


def _path(location: tuple[int | str, ...]) -> str:
    """a.b[0] without the names that pydantic gives to the members of a union."""
    parts = []
    for index, part in enumerate(location):
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif index == 0 or not ("[" in part or part in ("str", "constrained-str")):
            parts.append(f".{part}" if parts else part)
    return "".join(parts) or "(body)"


def _nearest(model: type[BaseModel], name: str, depth: int) -> str:
    if depth > 1:
        return ""
    allowed = [field.alias or key for key, field in model.model_fields.items()]
    match = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f", did you mean {match[0]}?" if match else f"; allowed are {', '.join(allowed)}"
