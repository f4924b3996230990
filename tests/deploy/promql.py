"""What rules and dashboards ask Prometheus for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from common.paths import SOURCE_ROOT
from runtime.k8s import scaling

PROMETHEUS = SOURCE_ROOT / "deploy" / "prometheus"
DASHBOARDS = SOURCE_ROOT / "deploy" / "grafana" / "dashboards"
POD_LABELS = {"namespace": "ew", "pod": "ew-0"}  # a Prometheus operator adds such
STRINGS = re.compile(r'"[^"]*"|\'[^\']*\'')
SELECTORS = re.compile(r"\{[^}]*\}|\[[^\]]*\]")
LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][a-zA-Z0-9_:]*(?![a-zA-Z0-9_:]*\s*\()")
OPERATORS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


@dataclass(frozen=True)
class Query:
    """An expression and where it stands."""

    where: str
    expr: str


def metric_names(expr: str) -> set[str]:
    """Every metric that an expression reads."""
    bare = LABEL_LISTS.sub(" ", SELECTORS.sub(" ", STRINGS.sub("", expr)))
    return {name for name in NAME.findall(bare) if name.lower() not in OPERATORS}


@cache
def rules() -> tuple[dict[str, Any], ...]:
    """Every recording and alerting rule."""
    paths = sorted((PROMETHEUS / "rules").glob("*.yml"))
    groups = [group for path in paths for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    return tuple(rule for group in groups for rule in group["rules"])


def rule_queries() -> list[Query]:
    return [Query(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()]


def panel_queries() -> list[Query]:
    """Every query of every panel, and of the variables."""
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text(encoding="utf-8"))
        for panel in board["panels"]:
            where = f"{path.stem}: {panel['title']}"
            found += [Query(where, target["expr"]) for target in panel.get("targets", ())]
    return found


def variable_queries() -> list[Query]:
    """The series that dashboards' variables are read from."""
    boards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))]
    variables = [item for board in boards for item in board["templating"]["list"] if item["type"] == "query"]
    return [Query(item["name"], label_values(item["query"])) for item in variables]


def autoscaler_queries() -> list[Query]:
    """What prometheus-adapter and KEDA ask about the copies of a service in the namespace of POD_LABELS."""
    adapter = yaml.safe_load((SOURCE_ROOT / "deploy" / "k8s" / "prometheus-adapter.yaml").read_text())
    found = []
    for rule in adapter["rules"]["custom"]:
        name = rule["name"]["as"]
        (series,) = metric_names(rule["seriesQuery"])
        labels = ",".join(f'{label}="{value}"' for label, value in POD_LABELS.items())
        expr = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.LabelMatchers>>", labels)
        found.append(Query(f"adapter, discovery: {name}", rule["seriesQuery"]))
        found.append(Query(f"adapter: {name}", expr.replace("<<.GroupBy>>", "pod")))
    for query in (scaling.WAITING_QUERY, scaling.KV_CACHE_QUERY):
        found.append(Query("keda", query.format(namespace=POD_LABELS["namespace"])))
    return found


def label_values(query: str) -> str:
    """The series in label_values(SERIES, LABEL)."""
    match = re.fullmatch(r"label_values\((.+), \w+\)", query)
    assert match, query
    return match[1]


def filled(expr: str) -> str:
    """As Grafana sends it when everything is chosen."""
    for variable, value in {"$__rate_interval": "30s", "$job": ".*", "$model": ".*"}.items():
        expr = expr.replace(variable, value)
    return expr
