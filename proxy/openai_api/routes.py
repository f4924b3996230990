"""POST /v1/chat/completions, /v1/completions; GET /v1/models."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.errors import EwError
from proxy.generation import Generation
from proxy.http import ClientConnection, Receive, Scope, Send, client_connection, read_body, send_json
from proxy.openai_api import framing
from proxy.openai_api.framing import ChoiceWriter, Documents, Kind
from proxy.openai_api.merge import stream_many, texts_of_all
from proxy.openai_api.plan import plan_chat, plan_completion
from proxy.openai_api.schema import ChatRequest, CompletionRequest
from proxy.schema import parse
from proxy.service import Service
from proxy.streaming import stream


def openai_routes(service: Service) -> list[Route]:
    models = Models(service)
    return [
        Route("/v1/chat/completions", OpenAIRoute(service, "chat"), methods=["POST"]),
        Route("/v1/completions", OpenAIRoute(service, "completion"), methods=["POST"]),
        Route("/v1/models", models.index),
        Route("/v1/models/{model_id}", models.one),
    ]


class SingleFraming:
    """A stream of one choice."""

    content_type = b"text/event-stream; charset=utf-8"

    def __init__(self, documents: Documents, writer: ChoiceWriter, *, with_usage: bool) -> None:
        self._documents = documents
        self._writer = writer
        self._with_usage = with_usage
        self.begin = writer.begin
        self.delta = writer.delta

    def end(self, generation: Generation) -> bytes:
        return self._writer.end() + closing(self._documents, [generation], self._with_usage)

    def failure(self, generation: Generation, error: EwError) -> bytes:
        return framing.failure(error, self._documents.request_id)


class OpenAIRoute:
    def __init__(self, service: Service, kind: Kind) -> None:
        self._service = service
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, context = self._service, scope["ew"]
        settings = service.settings
        body = await read_body(scope, receive, settings.max_body_bytes, settings.body_timeout)
        fields: Any
        if self._kind == "chat":
            fields = parse(ChatRequest, body)
            plan = plan_chat(service, fields, scope)
        else:
            fields = parse(CompletionRequest, body)
            plan = plan_completion(service, fields, scope)
        context.model_id = plan.model.model_id
        documents = Documents(context.request_id, self._kind, plan)
        async with AsyncExitStack() as stack:
            generations = [
                await stack.enter_async_context(service.run(one, context)) for one in plan.requests
            ]
            client = client_connection(scope)
            if fields.stream:
                await self._stream(documents, generations, fields, send, client)
            else:
                await self._whole(documents, generations, fields, send, client)

    async def _stream(
        self,
        documents: Documents,
        generations: list[Generation],
        fields: Any,
        send: Send,
        client: ClientConnection,
    ) -> None:
        options = fields.stream_options
        with_usage = options is not None and options.include_usage
        writers = [ChoiceWriter(documents, i, generation) for i, generation in enumerate(generations)]
        hold = self._service.settings.header_hold
        if len(generations) == 1:
            single = SingleFraming(documents, writers[0], with_usage=with_usage)
            await stream(generations[0], single, send, client, hold)
            return
        await stream_many(
            list(zip(generations, writers, strict=True)),
            send,
            client,
            lambda: closing(documents, generations, with_usage),
            lambda error: framing.failure(error, documents.request_id),
            hold,
        )

    async def _whole(
        self,
        documents: Documents,
        generations: list[Generation],
        fields: Any,
        send: Send,
        client: ClientConnection,
    ) -> None:
        plan = documents.plan
        texts = await texts_of_all(generations, client)
        if self._kind == "completion" and fields.echo:
            each = len(generations) // len(plan.prompt_texts)
            texts = [plan.prompt_texts[index // each] + text for index, text in enumerate(texts)]
        choices = [
            framing.whole_choice(documents, index, generation, text)
            for index, (generation, text) in enumerate(zip(generations, texts, strict=True))
        ]
        await send_json(send, 200, documents.whole(choices, framing.usage(plan, generations)))


def closing(documents: Documents, generations: list[Generation], with_usage: bool) -> bytes:
    """[DONE], after the usage where it was asked for."""
    if not with_usage:
        return framing.DONE
    return documents.chunk([], usage=framing.usage(documents.plan, generations)) + framing.DONE


class Models:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def index(self, request: Request) -> Response:
        models = [_model(name) for name in self._service.registry.models]
        return _json({"object": "list", "data": models})

    async def one(self, request: Request) -> Response:
        return _json(_model(self._service.registry.get(request.path_params["model_id"]).model_id))


def _model(model_id: str) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "ew"}


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
