"""Recording rules of the service level objectives: the share of bad events over every window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

# Pairs of windows that the burn alerts compare: a long one, and a short one that ends the alert soon.
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
COUNTED_WINDOWS = ("1h", "6h", "1d", "3d")  # where alerts ask for a number of events, too
HEAD = """# Generated from deploy/prometheus/objectives.yml by scripts/make_observability.py. Do not edit.
"""


def rules(source: Path) -> str:
    """The rule file of the objectives in `source`."""
    objectives = yaml.safe_load(source.read_text(encoding="utf-8"))["objectives"]
    groups = [
        {"name": f"ew-objective-{slo}", "rules": _objective(slo, fields)}
        for slo, fields in objectives.items()
    ]
    return HEAD + yaml.safe_dump({"groups": groups}, sort_keys=False, width=1000)


def _objective(slo: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    budget = {
        "record": "ew:slo_budget:ratio",
        "expr": f"vector({1 - fields['target']:.6g})",
        "labels": {"slo": slo},
    }
    ratios = [
        {
            "record": f"ew:slo_errors:ratio_rate{window}",
            "expr": _ratio(fields, window),
            "labels": {"slo": slo},
        }
        for window in WINDOWS
    ]
    events = [
        {"record": f"ew:slo_events:rate{window}", "expr": _total(fields, window), "labels": {"slo": slo}}
        for window in COUNTED_WINDOWS
    ]
    return [budget, *ratios, *events]


def _ratio(fields: dict[str, Any], window: str) -> str:
    bad = fields["bad"].replace("TOTAL", _total(fields, window)).replace("WINDOW", window)
    return f"({bad}) / {_total(fields, window)}"


def _total(fields: dict[str, Any], window: str) -> str:
    return str(fields["total"].replace("WINDOW", window))
