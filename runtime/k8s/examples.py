"""The overlays in deploy/k8s are renderings of the configs in deploy/k8s/examples.

`python -m runtime.k8s.examples` writes them again; a test keeps them fresh.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from common import atomic
from common.config import load_config
from runtime.k8s.overlay import TREE, Rendered, as_yaml, render_overlay
from runtime.k8s.pool import OVERLAYS
from runtime.k8s.tree import write_tree
from runtime.k8s.values import parse_values, read_values

EXAMPLES = TREE / "examples"
RULES = TREE.parent / "prometheus" / "rules"
ALERTS = Path("components") / "alerts" / "prometheusrule.yaml"


def render_example(overlay: str, *settings: str) -> Rendered:
    """An overlay from its example; `settings` are added to the example's own values."""
    folder = EXAMPLES / overlay
    values = parse_values((f"plan_from={folder / 'model'}", *read_values(folder / "values.txt"), *settings))
    return render_overlay(load_config(folder / "deploy.json"), values, overlay)


def alert_rules() -> str:
    """deploy/prometheus/rules as one object for the Prometheus operator."""
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yml"))]
    groups = [group for document in documents for group in document["groups"]]
    metadata = {"name": "ew", "labels": {"app.kubernetes.io/name": "ew"}}
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": metadata}
    return as_yaml({**rule, "spec": {"groups": groups}}, head="# Written from deploy/prometheus/rules.\n")


def write_examples(output: Path = TREE) -> None:
    atomic.write_text(output / ALERTS, alert_rules())
    for overlay in OVERLAYS:
        write_tree(render_example(overlay), output)


if __name__ == "__main__":
    write_examples()
