"""Write what is generated for Prometheus and Grafana: the objectives' rules and the dashboards.

    python -m scripts.make_observability

Sources: deploy/prometheus/objectives.yml and deploy/grafana/dashboards.yml.
"""

from __future__ import annotations

from pathlib import Path

from common.paths import SOURCE_ROOT
from scripts.observability.dashboards import dashboards
from scripts.observability.objectives import rules

PROMETHEUS = SOURCE_ROOT / "deploy" / "prometheus"
GRAFANA = SOURCE_ROOT / "deploy" / "grafana"


def files() -> dict[Path, str]:
    """Path -> text of every generated file."""
    made = {PROMETHEUS / "rules" / "objectives.yml": rules(PROMETHEUS / "objectives.yml")}
    for name, text in dashboards(GRAFANA / "dashboards.yml").items():
        made[GRAFANA / "dashboards" / f"{name}.json"] = text
    return made


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"Wrote {path.relative_to(SOURCE_ROOT)}")
