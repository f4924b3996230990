"""Grafana dashboards as JSON, from a list of rows, panels and queries."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)

PANEL_WIDTH = 8
PANEL_HEIGHT = 8
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
EVERYTHING = VariableOption(text="All", value="$__all", selected=True)
# Name -> query and what of its values is kept. tritonserver knows the models before the first request.
VARIABLES = {
    "job": ("label_values(ew_tritonserver_up, job)", ""),
    "model": ('label_values(nv_inference_request_success{job=~"$job"}, model)', "/(.*)-tensorrt_llm$/"),
}


def dashboards(source: Path) -> dict[str, str]:
    """Dashboard id -> JSON."""
    described = yaml.safe_load(source.read_text(encoding="utf-8"))["dashboards"]
    return {uid: _json(_dashboard(uid, fields)) for uid, fields in described.items()}


def _json(built: dashboard.Dashboard) -> str:
    return json.dumps(built.build(), cls=JSONEncoder, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _dashboard(uid: str, fields: dict[str, Any]) -> dashboard.Dashboard:
    board = dashboard.Dashboard(fields["title"]).uid(uid).description(fields["description"]).tags(["ew"])
    board.time("now-1h", "now").refresh("30s").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
    board.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    for variable in _variables():
        board.with_variable(variable)
    numbers = itertools.count(1)
    for row in fields["rows"]:
        board.with_row(dashboard.Row(row["title"]).id(next(numbers)))
        for panel in row["panels"]:
            board.with_panel(_panel(panel).id(next(numbers)))
    return board


def _variables() -> Iterator[dashboard.QueryVariable]:
    for name, (query, kept) in VARIABLES.items():
        variable = dashboard.QueryVariable(name).label(name.capitalize()).query(query).datasource(SOURCE)
        variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).current(EVERYTHING).regex(kept)
        yield variable.multi(True).include_all(True)


def _panel(fields: dict[str, Any]) -> timeseries.Panel | stat.Panel:
    is_stat = fields.get("kind") == "stat"
    panel: timeseries.Panel | stat.Panel = _figure() if is_stat else _graph()
    panel.title(fields["title"]).description(fields.get("description", "")).datasource(SOURCE)
    panel.unit(fields.get("unit", "short")).span(fields.get("width", PANEL_WIDTH)).height(PANEL_HEIGHT)
    for letter, query in zip("ABCDEFGH", fields["queries"], strict=False):
        target = prometheus.Dataquery().expr(query["expr"]).legend_format(query["legend"]).ref_id(letter)
        panel.with_target(target.instant() if is_stat else target.range())
    return panel


def _figure() -> stat.Panel:
    return stat.Panel().text_mode(BigValueTextMode.VALUE_AND_NAME).graph_mode(BigValueGraphMode.NONE)


def _graph() -> timeseries.Panel:
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True)
    return timeseries.Panel().legend(legend.placement(LegendPlacement.BOTTOM)).min(0).fill_opacity(10)
