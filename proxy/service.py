"""What all routes share: models, servers, keys, limits and the generations that run."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.config import DeployConfig, load_config
from common.errors import EwError
from proxy import metrics
from proxy.generation import Generation, GenerationRequest, Timings
from proxy.http import Overloaded, TooManyRequests
from proxy.keys import ApiKey, KeyStore
from proxy.limits import RateLimiter
from proxy.loading import OnDemand
from proxy.models import Registry
from proxy.restricted import read_header
from proxy.router import REFRESH_SECONDS, Router
from proxy.routes import RoutesFile
from proxy.settings import Settings
from proxy.tracing import configured_tracing
from proxy.triton_metrics import TritonMetrics

log = logging.getLogger("proxy.service")


@dataclass
class Context:
    """One HTTP request on its way through the proxy."""

    request_id: str
    arrived: float
    key: ApiKey | None = None
    status: int = 0
    model_id: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    timings: Timings | None = None
    span: Any = None


class Service:
    """The state of one worker process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = Registry(load_config(Path(settings.config)), settings.models)
        self.router = Router(settings.triton, read_header(settings.triton_header_file))
        self.triton_metrics = TritonMetrics(settings.triton_metrics)
        self._routes = RoutesFile(Path(settings.routes)) if settings.routes else None
        self.keys = KeyStore(Path(settings.keys)) if settings.keys else None
        self.rates = RateLimiter()
        self.tracing = configured_tracing()
        shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # set when there are several workers
        self.on_demand = OnDemand(self.router, self.registry.configs(), Path(shared) if shared else None)
        self.draining = False
        self._drained_at = 0.0  # of the loop's clock
        self.active: set[Generation] = set()
        self._per_model: Counter[str] = Counter()
        self._per_key: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.refresh()
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._refresh_forever()))
        self._tasks.append(loop.create_task(self.on_demand.unload_idle(self._per_model.__getitem__)))

    async def refresh(self) -> None:
        """Look at the routes file, if there is one, then at every server."""
        await self._take_routes()
        await self.router.refresh()

    async def _refresh_forever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.refresh()

    async def _take_routes(self) -> None:
        """Servers and models as the routes file has them now; what is wrong with it leaves all as it was."""
        try:
            routes = self._routes.changed() if self._routes else None
            if routes is None:
                return
            wanted = {model_id for route in routes for model_id in route.models}
            entries = load_config(Path(self.settings.config)).models.items()
            config = DeployConfig(
                models={model_id: entry for model_id, entry in entries if model_id in wanted}
            )
            # Tokenizers take long to read, and streams go on meanwhile.
            self.registry = await asyncio.to_thread(Registry, config, (), self.registry)
        except EwError as error:
            log.error("the routes stay as they are: %s", error)
            return
        await self.router.use(routes)
        await self.triton_metrics.use(route.metrics for route in routes)
        self.on_demand.use_models(self.registry.configs())
        log.info("serving %s", ", ".join(self.registry.models))

    async def stop(self) -> None:
        self.cancel_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.router.close()
        if self.tracing is not None:
            await self.tracing.close()
        await self.triton_metrics.close()

    def begin_drain(self) -> None:
        """Not ready from now on; running generations have `drain` seconds, then end with a typed event.

        New work is refused, but for what open connections bring while `patience` lasts.
        """
        if not self.draining:
            self.draining = True
            loop = asyncio.get_running_loop()
            self._drained_at = loop.time() + self.settings.drain
            loop.call_later(self.settings.drain, self.cancel_all)

    def patience(self) -> float:
        """Seconds that a connection which fell idle now may stay open for one last request; 0 for none.

        At most half of what is left of the drain, so that the request has the other half.
        """
        left = self._drained_at - asyncio.get_running_loop().time()
        return max(0.0, min(self.settings.lame_duck, left / 2))

    def cancel_all(self) -> None:
        for generation in tuple(self.active):
            generation.cancel("draining")

    def ready(self) -> dict[str, str]:
        """Model id -> state, as of the last look."""
        return {model_id: self.router.state(model_id) for model_id in self.registry.models}

    def is_ready(self, only: Sequence[str] = ()) -> bool:
        """Every model that is meant to run is ready, at least one is, and the proxy is not draining.

        A model that is loaded on demand is ready while it is unloaded.

        Args:
            only: the models asked for, all of which must serve; the others do not count.
        """
        states = {
            model_id: "READY" if state == "UNLOADED" and self.on_demand.covers(model_id) else state
            for model_id, state in self.ready().items()
        }
        meant = [model_id for model_id, state in states.items() if state not in ("UNLOADING", "UNLOADED")]
        wanted = [states[model_id] for model_id in only or meant]
        return not self.draining and bool(wanted) and all(state == "READY" for state in wanted)

    def timeout(self, asked_ms: int | None) -> float:
        longest = self.settings.request_timeout
        return longest if asked_ms is None else min(longest, asked_ms / 1000)

    @asynccontextmanager
    async def run(self, request: GenerationRequest, context: Context) -> AsyncIterator[Generation]:
        """Admit and count one generation; it is stopped when the block ends, however it ends.

        Raises:
            Overloaded, TooManyRequests: refused before any work.
            ServiceError: no server has the model.
        """
        with self._admitted(request.model.model_id, context):
            await self.on_demand.use(request.model.model_id, self.settings.load_wait)
            client = self.router.client_for(request.model.model_id)
            traits = await self.router.traits(client, request.model.model_id)
            request = replace(request, streaming=traits.decoupled)
            span, request = self._begin_span(request, context)
            waiting = metrics.of_model(request.model.model_id).wait()
            generation = Generation(client, request, context.arrived, traits, waiting.end)
            context.timings = context.timings or generation.timings
            self.active.add(generation)
            try:
                yield generation
            finally:
                self.active.discard(generation)
                waiting.end()
                metrics.of_model(request.model.model_id).observe(generation)
                context.facts.update(_facts(generation))
                if self.tracing is not None:
                    self.tracing.end_generation(span, generation)

    def _begin_span(self, request: GenerationRequest, context: Context) -> tuple[Any, GenerationRequest]:
        """With tracing: the generation's span, and the request that tells tritonserver of it."""
        if self.tracing is None:
            return None, request
        span = self.tracing.start_generation(context.span, request)
        return span, replace(request, trace_headers=self.tracing.context_headers(span))

    @contextmanager
    def _admitted(self, model_id: str, context: Context) -> Iterator[None]:
        key = context.key.name if context.key else ""
        self._check_limits(model_id, key, context.key)
        self._per_model[model_id] += 1
        self._per_key[key] += 1
        gauge = metrics.of_model(model_id).active
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()
            self._per_model[model_id] -= 1
            self._per_key[key] -= 1

    def _check_limits(self, model_id: str, name: str, key: ApiKey | None) -> None:
        error = self._refusal(model_id, name, key)
        if error is not None:
            metrics.REFUSED.labels(error.code).inc()
            raise error

    def _refusal(self, model_id: str, name: str, key: ApiKey | None) -> EwError | None:
        if self.draining and not self.patience():
            return Overloaded("The service is shutting down.", code="draining")
        workers = self.settings.workers
        room = self.registry.get(model_id).config.max_batch_size + self.settings.max_queue
        if self._per_model[model_id] * workers >= room:
            return Overloaded(f"{model_id} has {room} requests already.", hint="Try again later.")
        most = (key.max_concurrent if key else None) or self.settings.max_per_key
        if self._per_key[name] * workers >= most:
            return TooManyRequests(
                f"This key has {most} requests running already.", hint="Wait for one to end."
            )
        if key is not None and key.requests_per_minute is not None:
            return self.rates.refusal(key.name, key.requests_per_minute / workers)
        return None


def new_engine_id() -> str:
    return os.urandom(16).hex()


def _facts(generation: Generation) -> dict[str, Any]:
    """What the access log says of a generation: numbers, never text."""
    return {
        "finishReason": generation.finish_reason,
        "cause": generation.cause,
        "promptTokens": len(generation.request.prompt_ids),
        "completionTokens": generation.completion_tokens,
        "proxyMs": round(generation.timings.added * 1000, 3),
    }
