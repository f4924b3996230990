"""A real Prometheus scrapes the running service: every rule and panel finds what it asks for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.prometheus_process import Prometheus, prometheus
from tests.deploy.promql import (
    Query,
    autoscaler_queries,
    filled,
    metric_names,
    panel_queries,
    rule_queries,
    rules,
    variable_queries,
)
from tests.e2e.conftest import RunningService

pytestmark = pytest.mark.e2e

CONTRACT = Path(__file__).parents[1] / "data" / "contracts" / "triton_gpu_metrics.json"
FROM_PROMETHEUS = {"up"}
SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="module")
def scraper(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has seen every kind of request twice, so that each counter grew while it looked."""
    limited = json.loads(
        service.installation.run("keys", "add", "limited", "--requests-per-minute", "1", "--json").stdout
    )["key"]
    everything(service, limited)
    with prometheus(service.url.removeprefix("http://"), tmp_path_factory.mktemp("prometheus")) as running:
        running.wait_scrapes(2)
        everything(service, limited)
        running.wait_scrapes(2)
        yield running


def everything(service: RunningService, limited_key: str) -> None:
    """Requests that end in every way: whole, refused, left by the client, out of time."""
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(ask, service, maxTokens=8) for _ in range(4)]:
            assert done.result() == 200
    ask(service, key=limited_key, maxTokens=1)
    assert ask(service, key=limited_key, maxTokens=1) == 429
    assert ask(service, timeoutMs=700, maxTokens=2000, minTokens=2000) == 200
    leave(service)


def ask(service: RunningService, *, key: str = "", **fields: object) -> int:
    """Stream one answer to its end; the HTTP status."""
    body = {"modelId": service.model, "prompt": "Count from one to one hundred.", **fields}
    headers = {**service.headers, **({"X-API-Key": key} if key else {})}
    answer = requests.post(f"{service.url}/api/v1/inference/stream", json=body, headers=headers, timeout=60)
    return answer.status_code


def leave(service: RunningService) -> None:
    body = {"modelId": service.model, "prompt": "Count.", "maxTokens": 500, "minTokens": 500}
    path = f"{service.url}/api/v1/inference/stream"
    with requests.post(path, json=body, headers=service.headers, stream=True, timeout=60) as answer:
        next(answer.iter_lines())


def exported(service: RunningService) -> set[str]:
    """Every sample name that the service's one metrics page can show."""
    text = requests.get(f"{service.url}/metrics", timeout=10).text
    names = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    declared = [line.split(" ") for line in text.splitlines() if line.startswith("# TYPE")]
    return names | {name + suffix for _, _, name, kind in declared for suffix in SUFFIXES.get(kind, ("",))}


def from_contract() -> set[str]:
    return set(json.loads(CONTRACT.read_text(encoding="utf-8"))["metrics"])


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def needs_gpu(query: Query) -> bool:
    """Asks for a metric that only a GPU machine has, perhaps through a recorded series."""
    expressions = [query.expr, *(recorded().get(name, "") for name in metric_names(query.expr))]
    return any(metric_names(expr) & from_contract() for expr in expressions)


def test_every_metric_that_is_asked_for_exists(service: RunningService) -> None:
    asked = [*rule_queries(), *panel_queries(), *variable_queries(), *autoscaler_queries()]
    assert unknown(asked, service) == {}
    mistyped = [Query("typo", 'rate(ew_request_total{job="ew"}[5m]) / nv_inference_count')]
    assert unknown(mistyped, service) == {"typo": {"ew_request_total"}}


def unknown(queries: list[Query], service: RunningService) -> dict[str, set[str]]:
    """Where a query stands -> the metrics in it that nothing exports."""
    known = exported(service) | from_contract() | set(recorded()) | FROM_PROMETHEUS
    return {query.where: names for query in queries if (names := metric_names(query.expr) - known)}


def test_gpu_metrics_are_known_from_the_contract_only(service: RunningService) -> None:
    assert exported(service) & from_contract() == set()
    assert any(needs_gpu(query) for query in panel_queries())


def test_prometheus_sees_the_proxy_and_tritonserver(scraper: Prometheus, service: RunningService) -> None:
    (target,) = scraper.get("targets")["activeTargets"]
    assert (target["labels"]["job"], target["health"], target["lastError"]) == ("ew", "up", "")
    answers = f'increase(ew_generations_total{{model="{service.model}",finish_reason="length"}}[1m])'
    assert sum(scraper.values(answers)) > 0
    requests_of_engine = f'nv_inference_request_success{{model="{service.model}-tensorrt_llm"}}'
    assert sum(scraper.values(requests_of_engine)) >= 10
    assert sum(scraper.values('nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max"}')) > 0


def test_every_panel_shows_data(scraper: Prometheus) -> None:
    queries = [query for query in panel_queries() if not needs_gpu(query)]
    assert len(queries) > 40
    assert [query for query in queries if not shows(scraper, query.expr)] == []


def test_every_recording_rule_and_variable_has_values(scraper: Prometheus) -> None:
    records = [Query(name, name) for name, expr in recorded().items() if not needs_gpu(Query(name, expr))]
    assert [query for query in [*records, *variable_queries()] if not shows(scraper, query.expr)] == []


def test_autoscalers_get_numbers(scraper: Prometheus) -> None:
    queries = autoscaler_queries()
    assert len(queries) == 6
    assert [query for query in queries if not shows(scraper, query.expr)] == []


def shows(scraper: Prometheus, expr: str) -> bool:
    return any(not math.isnan(value) for value in scraper.values(filled(expr)))


def test_rules_are_healthy_and_no_alert_fires(scraper: Prometheus) -> None:
    loaded = [rule for group in scraper.get("rules")["groups"] for rule in group["rules"]]
    assert len(loaded) == len(rules())
    assert {rule["health"] for rule in loaded} == {"ok"}
    firing = [alert for alert in scraper.get("alerts")["alerts"] if alert["state"] == "firing"]
    assert firing == []
