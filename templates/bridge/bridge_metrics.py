"""The engine's state as Triton metrics, named as NVIDIA's C++ TensorRT-LLM backend names them."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb
from protocol import Ready, Stats

REQUESTS = "nv_trt_llm_request_metrics"
KV_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
BATCHER = "nv_trt_llm_inflight_batcher_metrics"
GENERAL = "nv_trt_llm_general_metrics"
TOKENS = "ew_generated_tokens"
RESTARTS = "ew_worker_restarts"


class Metrics:
    """Gauges and counters of one model; only changed values are handed to Triton."""

    def __init__(self, model: str, version: str) -> None:
        self._labels = {"model": model, "version": version}
        self._gauges: dict[tuple[str, str], Any] = {}
        self._values: dict[tuple[str, str], float] = {}
        self._families: list[Any] = []
        self._define(
            REQUESTS, "TRT LLM request metrics", "request_type", ("active", "max", "scheduled", "waiting")
        )
        self._define(
            KV_BLOCKS,
            "TRT LLM KV cache block metrics",
            "kv_cache_block_type",
            ("max", "free", "used", "tokens_per", "fraction"),
        )
        self._define(
            BATCHER,
            "TRT LLM inflight_batcher-specific metrics",
            "inflight_batcher_specific_metric",
            ("generation_requests", "tokens_per_second"),
        )
        self._define(GENERAL, "General TRT LLM metrics", "general_type", ("iteration_counter",))
        self._tokens = self._counter(TOKENS, "Tokens generated since the model was loaded")
        self._restarts = self._counter(RESTARTS, "Times the engine worker was started again")
        self._counted = 0
        self._blocks = 0

    def engine_ready(self, ready: Ready) -> None:
        self._blocks = ready.kv_cache_tokens // max(ready.kv_block_tokens, 1)
        self._set(REQUESTS, "max", ready.max_batch_size)
        self._set(KV_BLOCKS, "max", self._blocks)
        self._set(KV_BLOCKS, "tokens_per", ready.kv_block_tokens)
        self.update(Stats())

    def update(self, stats: Stats) -> None:
        used = round(stats.kv_used_fraction * self._blocks)
        self._set(REQUESTS, "active", stats.active)
        self._set(REQUESTS, "scheduled", stats.scheduled)
        self._set(REQUESTS, "waiting", stats.active - stats.scheduled)
        self._set(KV_BLOCKS, "used", used)
        self._set(KV_BLOCKS, "free", self._blocks - used)
        self._set(KV_BLOCKS, "fraction", stats.kv_used_fraction)
        self._set(BATCHER, "generation_requests", stats.scheduled)
        self._set(BATCHER, "tokens_per_second", stats.tokens_per_second)
        self._set(GENERAL, "iteration_counter", stats.steps)
        if stats.generated_tokens > self._counted:
            self._tokens.increment(stats.generated_tokens - self._counted)
        self._counted = stats.generated_tokens

    def release(self) -> None:
        """Give the metrics back while Triton can still take them: destroyed later, they crash the stub."""
        self._gauges.clear()
        self._families.clear()
        self._tokens = self._restarts = None

    def worker_lost(self) -> None:
        self._restarts.increment(1)
        self.update(Stats())

    def _define(self, name: str, description: str, label: str, kinds: tuple[str, ...]) -> None:
        family = pb.MetricFamily(name=name, description=description, kind=pb.MetricFamily.GAUGE)
        self._families.append(family)
        for kind in kinds:
            self._gauges[name, kind] = family.Metric(labels={**self._labels, label: kind})

    def _counter(self, name: str, description: str) -> Any:
        family = pb.MetricFamily(name=name, description=description, kind=pb.MetricFamily.COUNTER)
        self._families.append(family)
        return family.Metric(labels=self._labels)

    def _set(self, name: str, kind: str, value: float) -> None:
        if self._values.get((name, kind)) != value:
            self._values[name, kind] = value
            self._gauges[name, kind].set(value)
