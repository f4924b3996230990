"""A real Prometheus with the shipped configuration and rules, scraping one service often."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from runtime import ports
from tests.deploy.promql import POD_LABELS, PROMETHEUS
from tests.deploy.tools import tool

START_SECONDS = 60
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Prometheus:
    """Address of a running server."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an API answer."""
        answer = requests.get(f"{self.url}/api/v1/{path}", parameters, timeout=10)
        document = answer.json()
        assert document["status"] == "success", document
        return document["data"]

    def values(self, expr: str) -> list[float]:
        """What an expression evaluates to now, without labels."""
        return [float(sample["value"][1]) for sample in self.get("query", query=expr)["result"]]

    def scrapes(self) -> float:
        """How many scrapes of the service went well."""
        return sum(self.values('sum_over_time(up{job="ew"}[1h])'))

    def wait_scrapes(self, count: int) -> None:
        """Until `count` more scrapes went well, and one round of rules has seen them."""
        wanted = self.scrapes() + count + 1
        deadline = time.monotonic() + START_SECONDS
        while self.scrapes() < wanted:
            assert time.monotonic() < deadline, "Prometheus does not scrape"
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Scrape `target` (host:port) as deploy/prometheus/prometheus.yml says, but every two seconds."""
    port = _free_port()
    address = f"127.0.0.1:{port}"
    command = [
        tool("prometheus", "prometheus"),
        f"--config.file={_configuration(target, folder)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _wait_ready(f"http://{address}", process, log)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(30)


def _configuration(target: str, folder: Path) -> Path:
    shutil.copytree(PROMETHEUS / "rules", folder / "rules")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"].update(scrape_interval="2s", scrape_timeout="2s", evaluation_interval="1s")
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target], "labels": POD_LABELS}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/-/ready", timeout=5).ok:
                return
        time.sleep(POLL_SECONDS)
    raise AssertionError(log.read_text(errors="replace"))


def _free_port() -> int:
    with ports.reserve_any() as reserved:
        return ports.port_of(reserved)
