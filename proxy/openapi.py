"""/openapi.json: made from the same models that validate requests."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from proxy.openai_api.schema import ChatRequest, CompletionRequest
from proxy.schema import InferenceRequest

REF = "#/components/schemas/{model}"
ONLY_MODELS = {
    "name": "model",
    "in": "query",
    "required": False,
    "schema": {"type": "array", "items": {"type": "string"}},
}
MODEL_ID = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
ERRORS = {
    "400": "A field is wrong, or the engine refuses the request; the message names it.",
    "401": "No API key, or a wrong one.",
    "403": "The key's role does not allow this.",
    "404": "No such model.",
    "408": "The request did not arrive in time.",
    "413": "The body is too large.",
    "429": "Too many requests for this key; Retry-After says when to try again.",
    "500": "The proxy failed.",
    "502": "The engine failed before its first token.",
    "503": "Overloaded, draining, or the model is not ready.",
    "504": "The time limit passed before the first token.",
}
BODIES: tuple[type[BaseModel], ...] = (InferenceRequest, ChatRequest, CompletionRequest)


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in BODIES], ref_template=REF, by_alias=True
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "ew", "version": "1", "description": "Text generation over Triton."},
        "paths": _paths(),
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"key": []}, {"bearer": []}],
    }


def _paths() -> dict[str, Any]:
    return {
        "/api/v1/inference/stream": {
            "post": _post(
                "Stream an answer.", "InferenceRequest", ("text/event-stream", "application/x-ndjson")
            )
        },
        "/api/v1/inference": {"post": _post("Answer in one document.", "InferenceRequest")},
        "/api/v1/models": {"get": _get("All models and their states.")},
        "/api/v1/models/{model_id}": {"get": _get("One model.", MODEL_ID)},
        "/api/v1/models/{model_id}/load": {"post": _control("Load a model (admin key).")},
        "/api/v1/models/{model_id}/unload": {"post": _control("Unload a model (admin key).")},
        "/api/v1/status": {"get": _get("State of the service.")},
        "/v1/chat/completions": {
            "post": _post(
                "OpenAI chat completions.", "ChatRequest", ("application/json", "text/event-stream")
            )
        },
        "/v1/completions": {
            "post": _post(
                "OpenAI completions.", "CompletionRequest", ("application/json", "text/event-stream")
            )
        },
        "/v1/models": {"get": _get("Models in OpenAI's form.")},
        "/v1/models/{model_id}": {"get": _get("One model in OpenAI's form.", MODEL_ID)},
        "/health/live": {"get": _open("The process answers.")},
        "/health/ready": {"get": _readiness()},
        "/metrics": {"get": _open("Metrics for Prometheus.", "text/plain")},
    }


def _post(summary: str, body: str, kinds: tuple[str, ...] = ("application/json",)) -> dict[str, Any]:
    schema = {"schema": {"$ref": REF.format(model=body)}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": schema}},
        "responses": _responses(kinds),
    }


def _control(summary: str) -> dict[str, Any]:
    return {"summary": summary, "parameters": [MODEL_ID], "responses": _responses(("application/json",))}


def _get(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    responses = _responses(("application/json",))
    return {"summary": summary, "parameters": list(parameters), "responses": responses}


def _open(summary: str, kind: str = "application/json") -> dict[str, Any]:
    """A route without a key."""
    return {"summary": summary, "security": [], "responses": _responses((kind,))}


def _readiness() -> dict[str, Any]:
    """Here 503 is an answer, not an error: the same document with another status."""
    described = _open("Every model that is meant to run is ready, or every one that `model` names.")
    described["parameters"] = [ONLY_MODELS]
    described["responses"]["503"] = {**described["responses"]["200"], "description": "Not ready."}
    return described


def _responses(kinds: tuple[str, ...]) -> dict[str, Any]:
    headers = {
        name: {"schema": {"type": "string"}} for name in ("X-Request-Id", "X-Response-Time", "Server-Timing")
    }
    content: dict[str, Any] = {kind: {} for kind in kinds}
    error = {"application/json": {"schema": {"$ref": REF.format(model="Error")}}}
    return {
        "200": {"description": "Success.", "headers": headers, "content": content},
        **{
            status: {"description": text, "headers": headers, "content": error}
            for status, text in ERRORS.items()
        },
    }


_ERROR = {
    "type": "object",
    "required": ["error", "requestId"],
    "properties": {
        "requestId": {"type": "string"},
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string", "description": "Stable name of the error."},
                "message": {"type": "string", "description": "What happened and why."},
                "why": {"type": "string"},
                "hint": {"type": "string", "description": "What to do next."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
            },
        },
    },
}
