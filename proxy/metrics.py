"""Prometheus metrics. With several workers, PROMETHEUS_MULTIPROC_DIR must be set before this is imported."""

from __future__ import annotations

import os

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
TOTAL_BUCKETS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

REQUESTS = Counter("ew_requests_total", "HTTP requests answered", ["route", "status"])
FINISHED = Counter("ew_generations_total", "Generations ended, by finish reason", ["model", "finish_reason"])
PROMPT_TOKENS = Counter("ew_prompt_tokens_total", "Prompt tokens sent to the engine", ["model"])
COMPLETION_TOKENS = Counter("ew_completion_tokens_total", "Tokens generated", ["model"])
CANCELLATIONS = Counter("ew_cancellations_total", "Generations stopped before their end", ["model", "reason"])
REFUSED = Counter("ew_refused_total", "Requests refused before any work", ["reason"])
ACTIVE = Gauge("ew_active_generations", "Generations running", ["model"], multiprocess_mode="livesum")
TTFT = Histogram("ew_ttft_seconds", "Arrival to first token", ["model"], buckets=TTFT_BUCKETS)
ITL = Histogram("ew_itl_seconds", "Between two answers of the engine", ["model"], buckets=ITL_BUCKETS)
TOTAL = Histogram("ew_generation_seconds", "Arrival to end", ["model"], buckets=TOTAL_BUCKETS)
ADDED = Histogram("ew_added_seconds", "Time that the proxy adds to a generation", ["model"])


def render() -> bytes:
    """The exposition text, over all workers."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
