"""The compose files: valid, pinned, locked down, and their commands are ew's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from compose_spec import PyCompose

from cli.app import main as cli
from common.paths import SOURCE_ROOT
from runtime.launch import PROXY_DRAIN_SECONDS
from runtime.teardown import TERMINATE_SECONDS

FOLDER = SOURCE_ROOT / "deploy" / "compose"
FILES = ("cpu", "gpu", "monitoring")
VARIABLES = {"EW_MODEL": "m", "EW_MODEL_SOURCE": "someone/m"}
FOREGROUND_DRAIN_SECONDS = 30.0


def filled(text: str) -> str:
    """`text` with compose's variables as a shell that has only VARIABLES would fill them."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        assert name in VARIABLES or kind == "-", f"{name} has neither default nor value"
        return VARIABLES.get(name, rest)

    return re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", value, text)


def document(name: str) -> dict[str, Any]:
    """The file with variables and merges resolved."""
    resolved: dict[str, Any] = yaml.safe_load(filled((FOLDER / f"{name}.yml").read_text()))
    return resolved


def services() -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, key, value) for name in FILES for key, value in document(name)["services"].items()]


def validate(found: dict[str, Any]) -> None:
    PyCompose.from_yaml(yaml.safe_dump(found)).validate()


@pytest.mark.parametrize("name", FILES)
def test_follows_the_compose_specification(name: str) -> None:
    validate(document(name))


@pytest.mark.parametrize(
    ("good", "bad"),
    [("read_only:", "readonly:"), ("cap_drop: [ALL]", "cap_drop: ALL"), ("service_comp", "servic_comp")]
    + [("driver: nvidia", "drivr: nvidia"), ("volumes:\n  ew", "volume:\n  ew"), ("stop_grace", "stop_grac")],
)
def test_the_specification_is_enforced(good: str, bad: str) -> None:
    text = filled((FOLDER / "gpu.yml").read_text())
    assert good in text
    with pytest.raises(ValueError):
        validate(yaml.safe_load(text.replace(good, bad)))


@pytest.mark.parametrize(("name", "key", "service"), services())
def test_is_locked_down(name: str, key: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] and service["logging"]["options"]["max-size"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "user"} & set(service)
    assert all(not str(volume).startswith(("/", "~")) for volume in service["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize(("name", "key", "service"), services())
def test_images_are_pinned(name: str, key: str, service: dict[str, Any]) -> None:
    image, tag = service["image"].rsplit(":", 1)
    assert "latest" not in tag and re.search(r"\d+\.\d+", tag)
    assert image == "ew" or "/" in image


@pytest.mark.parametrize(("name", "key", "service"), services())
def test_mounted_files_exist(name: str, key: str, service: dict[str, Any]) -> None:
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        known = (FOLDER / source).is_dir() if source.startswith(".") else source in document(name)["volumes"]
        assert known, volume


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_builds_the_target_that_it_names(name: str) -> None:
    target = {"cpu": "cpu", "gpu": "triton"}[name]
    for service in document(name)["services"].values():
        build = service["build"]
        root = (FOLDER / build["context"]).resolve()
        assert root == SOURCE_ROOT and build["target"] == target
        assert f" AS {target}\n" in (root / build["dockerfile"]).read_text()


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("key", ["prepare", "ew"])
def test_commands_are_ews_own(name: str, key: str) -> None:
    verb, *arguments = document(name)["services"][key]["command"]
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    command.make_context(verb, list(arguments))  # raises on an unknown option or a bad value


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_grace_covers_the_slowest_stop(name: str) -> None:
    """Running streams, then tritonserver; whoever stops the container must wait for both."""
    service = document(name)["services"]["ew"]
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace >= max(PROXY_DRAIN_SECONDS, FOREGROUND_DRAIN_SECONDS) + TERMINATE_SECONDS + 5
    assert service["restart"] == "unless-stopped"
    assert service["depends_on"]["prepare"]["condition"] == "service_completed_successfully"


def test_prometheus_and_grafana_find_each_other_and_the_service() -> None:
    monitoring = document("monitoring")["services"]
    provisioning = SOURCE_ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in monitoring
    scrapes = yaml.safe_load((SOURCE_ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    targets = [t for job in scrapes["scrape_configs"] for s in job["static_configs"] for t in s["targets"]]
    assert "ew:8080" in targets
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "ew.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[1::-1] for volume in monitoring["grafana"]["volumes"])
    folder = Path(mounts[provider["options"]["path"]])
    home = monitoring["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (FOLDER / folder / Path(home).name).is_file()


def test_grafana_has_no_password_to_guess() -> None:
    settings = document("monitoring")["services"]["grafana"]["environment"]
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not [name for name in settings if "PASSWORD" in name]
