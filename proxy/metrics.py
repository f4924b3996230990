"""Prometheus metrics. With several workers, PROMETHEUS_MULTIPROC_DIR must be set before this is imported."""

from __future__ import annotations

import os
from bisect import bisect_right
from functools import cache
from time import perf_counter

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from proxy.generation import Generation


class BulkHistogram(Histogram):
    """A histogram that takes many values at the price of few."""

    def observe_all(self, ascending: list[float]) -> None:
        """`observe` each of the values, which are sorted."""
        self._sum.inc(sum(ascending))
        counted = 0
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            upto = bisect_right(ascending, bound)
            if upto > counted:
                bucket.inc(upto - counted)
                counted = upto


TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
TOTAL_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

REQUESTS = Counter("ew_requests_total", "HTTP requests answered", ["route", "status"])
FINISHED = Counter("ew_generations_total", "Generations ended, by finish reason", ["model", "finish_reason"])
PROMPT_TOKENS = Counter("ew_prompt_tokens_total", "Prompt tokens sent to the engine", ["model"])
COMPLETION_TOKENS = Counter("ew_completion_tokens_total", "Tokens generated", ["model"])
CANCELLATIONS = Counter("ew_cancellations_total", "Generations stopped before their end", ["model", "reason"])
BROKEN = Counter("ew_broken_streams_total", "Streams that ended with an error event", ["model", "reason"])
REFUSED = Counter("ew_refused_total", "Requests refused before any work", ["reason"])
ACTIVE = Gauge("ew_active_generations", "Generations running", ["model"], multiprocess_mode="livesum")
WAITING = Gauge(
    "ew_waiting_generations", "Generations before their first token", ["model"], multiprocess_mode="livesum"
)
TTFT = Histogram("ew_ttft_seconds", "Arrival to first token", ["model"], buckets=TTFT_BUCKETS)
ITL = BulkHistogram("ew_itl_seconds", "Between two answers of the engine", ["model"], buckets=ITL_BUCKETS)
TOTAL = Histogram("ew_generation_seconds", "Arrival to end", ["model"], buckets=TOTAL_BUCKETS)
ADDED = Histogram("ew_added_seconds", "Time that the proxy adds to a generation", ["model"])


class Wait:
    """Counts as waiting from now until `end`, which may be called again."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge: Gauge | None = gauge
        gauge.inc()

    def end(self) -> None:
        gauge, self._gauge = self._gauge, None
        if gauge is not None:
            gauge.dec()


class ModelMetrics:
    """The metrics of one model, looked up once."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id
        self.active = ACTIVE.labels(model_id)
        self._waiting = WAITING.labels(model_id)
        self._prompt_tokens = PROMPT_TOKENS.labels(model_id)
        self._completion_tokens = COMPLETION_TOKENS.labels(model_id)
        self._ttft = TTFT.labels(model_id)
        self._itl = ITL.labels(model_id)
        self._total = TOTAL.labels(model_id)
        self._added = ADDED.labels(model_id)

    def wait(self) -> Wait:
        """A generation waits for its first token from now on."""
        return Wait(self._waiting)

    def stream_broke(self, reason: str) -> None:
        """Count a stream whose status was 200 and whose answer is not whole."""
        BROKEN.labels(self._model_id, reason).inc()

    def observe(self, generation: Generation) -> None:
        """Count a generation that has ended."""
        timings = generation.timings
        FINISHED.labels(self._model_id, generation.finish_reason).inc()
        self._prompt_tokens.inc(len(generation.request.prompt_ids))
        self._completion_tokens.inc(generation.completion_tokens)
        self._total.observe(perf_counter() - timings.arrived)
        self._added.observe(timings.added)
        if timings.first:
            self._ttft.observe(timings.first - timings.arrived)
        self._itl.observe_all(timings.intervals())
        if generation.cause is not None:
            CANCELLATIONS.labels(self._model_id, generation.cause).inc()


@cache
def of_model(model_id: str) -> ModelMetrics:
    return ModelMetrics(model_id)


def render() -> bytes:
    """The exposition text, over all workers."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
