"""Grafana dashboards as JSON, from a list of rows, panels and queries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SCHEMA_VERSION = 36  # Grafana 9; later versions bring it up to their own when they load it
COLUMNS = 24
PANEL_WIDTH, PANEL_HEIGHT = 8, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Name -> query and what of its values is kept. tritonserver knows the models before the first request.
VARIABLES = {
    "job": ("label_values(ew_tritonserver_up, job)", ""),
    "model": ('label_values(nv_inference_request_success{job=~"$job"}, model)', "/(.*)-tensorrt_llm$/"),
}
OPTIONS = {
    "timeseries": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
    "stat": {"textMode": "value_and_name", "graphMode": "none"},
}
DEFAULTS = {"timeseries": {"min": 0, "custom": {"fillOpacity": 10}}, "stat": {}}


def dashboards(source: Path) -> dict[str, str]:
    """Dashboard id -> JSON."""
    described = yaml.safe_load(source.read_text(encoding="utf-8"))["dashboards"]
    return {uid: _json(_dashboard(uid, fields)) for uid, fields in described.items()}


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _dashboard(uid: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "uid": uid,
        "title": fields["title"],
        "description": fields["description"],
        "tags": ["ew"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_data_source(), *(_variable(name) for name in VARIABLES)]},
        "panels": [{"id": n, **panel} for n, panel in enumerate(_panels(fields["rows"]), start=1)],
    }


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _variable(name: str) -> dict[str, Any]:
    query, kept = VARIABLES[name]
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "regex": kept,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"selected": True, "text": "All", "value": "$__all"},
    }


@dataclass
class Cursor:
    """Where the next panel goes, in Grafana's units."""

    x: int = 0
    y: int = 0

    def place(self, width: int, height: int) -> dict[str, int]:
        """The place of a panel of that size; it begins a new line where it does not fit."""
        if self.x + width > COLUMNS:
            self.x, self.y = 0, self.y + PANEL_HEIGHT
        place = {"x": self.x, "y": self.y, "w": width, "h": height}
        self.x += width
        return place

    def new_line(self, height: int) -> None:
        self.x, self.y = 0, self.y + height


def _panels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    cursor = Cursor()
    for row in rows:
        place = cursor.place(COLUMNS, 1)
        yield {"type": "row", "title": row["title"], "collapsed": False, "gridPos": place, "panels": []}
        cursor.new_line(1)
        for panel in row["panels"]:
            yield _panel(panel, cursor.place(panel.get("width", PANEL_WIDTH), PANEL_HEIGHT))
        cursor.new_line(PANEL_HEIGHT)


def _panel(fields: dict[str, Any], place: dict[str, int]) -> dict[str, Any]:
    kind = fields.get("kind", "timeseries")
    return {
        "type": kind,
        "title": fields["title"],
        "description": fields.get("description", ""),
        "datasource": SOURCE,
        "gridPos": place,
        "options": OPTIONS[kind],
        "fieldConfig": {
            "defaults": {"unit": fields.get("unit", "short"), **DEFAULTS[kind]},
            "overrides": [],
        },
        "targets": [_target(number, query, kind == "stat") for number, query in enumerate(fields["queries"])],
    }


def _target(number: int, query: dict[str, str], instant: bool) -> dict[str, Any]:
    return {
        "refId": "ABCDEFGH"[number],
        "datasource": SOURCE,
        "expr": query["expr"],
        "legendFormat": query["legend"],
        "instant": instant,
        "range": not instant,
    }
