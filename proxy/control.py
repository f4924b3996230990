"""Everything that is not inference: models, status, health, metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.errors import EwError
from proxy import metrics, openapi
from proxy.service import Service

Handler = Callable[[Request], Awaitable[Response]]


def control_routes(service: Service) -> list[Route]:
    control = Control(service)
    return [
        Route("/health/live", control.live),
        Route("/health/ready", control.ready),
        Route("/metrics", control.metrics),
        Route("/openapi.json", control.openapi),
        Route("/api/v1/models", control.models),
        Route("/api/v1/models/{model_id}", control.model),
        Route("/api/v1/models/{model_id}/load", control.load, methods=["POST"]),
        Route("/api/v1/models/{model_id}/unload", control.unload, methods=["POST"]),
        Route("/api/v1/status", control.status),
    ]


class Control:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def live(self, request: Request) -> Response:
        return _json({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """200 when every model that is meant to run, or every `?model=`, is ready; the states are fresh."""
        await self._service.refresh()
        only = request.query_params.getlist("model")
        for model_id in only:
            self._service.registry.get(model_id)  # a name that nobody has will never be ready
        ready = self._service.is_ready(only)
        status = "ready" if ready else ("draining" if self._service.draining else "not ready")
        document = {"status": status, "models": self._service.ready(), "broken": self._broken()}
        return _json(document, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """The proxy's metrics, then tritonserver's."""
        text = metrics.render() + await self._service.triton_metrics.text()
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        return _json(openapi.document())

    async def models(self, request: Request) -> Response:
        registry = self._service.registry
        return _json({"models": [self._describe(name) for name in (*registry.models, *registry.broken)]})

    async def model(self, request: Request) -> Response:
        return _json(self._describe(request.path_params["model_id"]))

    async def load(self, request: Request) -> Response:
        return await self._set_loaded(request, loaded=True)

    async def unload(self, request: Request) -> Response:
        return await self._set_loaded(request, loaded=False)

    async def status(self, request: Request) -> Response:
        service = self._service
        document = {
            "status": "draining" if service.draining else ("ready" if service.is_ready() else "not ready"),
            "models": service.ready(),
            "broken": self._broken(),
            "activeGenerations": len(service.active),
            "tritonservers": [client.pool.url for client in service.router.clients],
        }
        return _json(document)

    def _broken(self) -> dict[str, Any]:
        return {name: error.as_dict() for name, error in self._service.registry.broken.items()}

    def _describe(self, model_id: str) -> dict[str, Any]:
        registry = self._service.registry
        error: EwError | None = registry.broken.get(model_id)
        if error is not None:
            return {"id": model_id, "state": "BROKEN", "error": error.as_dict()}
        model = registry.get(model_id)
        return {
            "id": model_id,
            "state": self._service.router.state(model_id),
            "engine": model.config.engine,
            "maxInputLen": model.config.max_input_len,
            "maxOutputLen": model.config.max_output_len,
            "maxBatchSize": model.config.max_batch_size,
            "chatTemplate": model.template is not None,
        }

    async def _set_loaded(self, request: Request, *, loaded: bool) -> Response:
        service = self._service
        model_id = request.path_params["model_id"]
        service.registry.get(model_id)
        await service.router.refresh()
        await service.router.set_loaded(model_id, loaded)
        await service.router.refresh()
        return _json(self._describe(model_id))


def _json(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json")
