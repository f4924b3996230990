"""Rules and dashboards by themselves: valid, fresh, every alert tested, every bound one that is measured."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.paths import SOURCE_ROOT
from proxy import metrics, openapi
from proxy.http import Overloaded
from scripts.make_observability import files
from tests.deploy.promql import (
    PROMETHEUS,
    filled,
    metric_names,
    panel_queries,
    rule_queries,
    rules,
)
from tests.deploy.tools import tool

RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
RULE_TESTS = sorted((Path(__file__).parent / "rules").glob("*.yml"))
GUIDES = [SOURCE_ROOT / "docs" / name for name in ("deploy.md", "deploy.zh-CN.md")]
BUCKETS = {"ew_ttft_seconds_bucket": metrics.TTFT_BUCKETS, "ew_itl_seconds_bucket": metrics.ITL_BUCKETS}


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [tool("promtool", "prometheus"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def alert_tests() -> list[dict[str, Any]]:
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULE_TESTS]
    cases = [case for document in documents for case in document["tests"]]
    return [check for case in cases for check in case.get("alert_rule_test", ())]


def test_generated_files_are_fresh() -> None:
    stale = [path.name for path, text in files().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python -m scripts.make_observability"


def test_no_dashboard_is_left_over() -> None:
    folder = SOURCE_ROOT / "deploy" / "grafana" / "dashboards"
    assert set(folder.glob("*")) == {path for path in files() if path.suffix == ".json"}


def test_rules_and_configuration_are_valid() -> None:
    done = promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULE_FILES)} rule files found" in done.stdout


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_rules_do_what_they_say(path: Path) -> None:
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    fires = {check["alertname"] for check in alert_tests() if check["exp_alerts"]}
    stays_silent = {check["alertname"] for check in alert_tests() if not check["exp_alerts"]}
    assert fires == stays_silent == alerts


def test_every_alert_has_a_severity_and_is_explained_in_the_guide() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("critical", "warning")
            for guide in GUIDES:
                assert f"`{rule['alert']}`" in guide.read_text(encoding="utf-8")


def test_rules_record_each_series_once() -> None:
    recorded = [
        (rule["record"], *sorted(rule.get("labels", {}).items())) for rule in rules() if "record" in rule
    ]
    assert len(recorded) == len(set(recorded))


def test_latency_bounds_are_buckets_of_the_proxy() -> None:
    expressions = " ".join(query.expr for query in [*rule_queries(), *panel_queries()])
    bounds = set(re.findall(r'(\w+_bucket)\{[^}]*le="([^"]+)"', expressions))
    assert {name for name, _ in bounds} == set(BUCKETS)
    for name, bound in bounds:
        assert float(bound) in BUCKETS[name]
        assert bound == str(float(bound))  # as the proxy writes it


def test_the_objective_of_availability_covers_exactly_the_inference_routes() -> None:
    expr = next(query.expr for query in rule_queries() if query.where == "ew:slo_events:rate1h")
    pattern = re.search(r'route=~"([^"]+)"', expr)
    assert pattern
    routes = set(openapi.document()["paths"])
    covered = {route for route in routes if re.fullmatch(pattern[1], route)}
    assert covered == {
        "/api/v1/inference",
        "/api/v1/inference/stream",
        "/v1/chat/completions",
        "/v1/completions",
    }


def test_the_alert_about_refusals_means_a_full_service() -> None:
    expr = next(query.expr for query in rule_queries() if query.where == "EwRefusing")
    assert f'reason="{Overloaded.default_code}"' in expr


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        (
            'sum by (job, le) (rate(a_total{x="b{c}", y=~"d"}[5m])) / on (slo) group_left () e:f',
            "a_total e:f",
        ),
        ("histogram_quantile(0.5, sum(rate(h_bucket[1m]))) or absent(up) and x * 2 > 1e3", "h_bucket up x"),
        ("label_replace(m, 'a', '$1', 'b', '(.*)') unless ignoring (z) n offset 5m", "m n"),
    ],
)
def test_names_are_read_from_expressions(expr: str, names: str) -> None:
    assert metric_names(expr) == set(names.split())


def test_dashboards_ask_with_known_variables_only() -> None:
    for query in panel_queries():
        assert "$" not in filled(query.expr), query
