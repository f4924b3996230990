"""From a service's record to its launch, and the container that outlives its client."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from common.config import DeployConfig, parse_config
from common.errors import NetworkError
from runtime import state, teardown
from runtime.environments import registry
from runtime.environments.registry import Environment
from runtime.launch import Command
from runtime.launchers.request import LaunchPlan
from runtime.launchers.service import LaunchOptions, ensure_image, plan_service
from runtime.processes import boot_id
from runtime.state import Ports, Service
from tests.builder.made import make_source, run

DOCKER = """#!/bin/sh
echo "$*" >> {record}
case "$1" in pull) exit {pull};; image) exit {image};; esac
"""


@pytest.fixture
def service(ew_home: Path) -> Service:
    run(make_source(ew_home / "hf"), ew_home / "models" / "tiny")
    ports = Ports(8080, 8000, 8001, 8002)
    return Service("abc", "starting", boot_id(), time.time(), "cpu", ("tiny",), "127.0.0.1", ports, "key")


@pytest.fixture
def config() -> DeployConfig:
    return parse_config({"models": {"tiny": {"engine": "cpu", "model_path": "models/tiny"}}})


def docker(folder: Path, monkeypatch: pytest.MonkeyPatch, *, pull: int = 0, image: int = 1) -> Path:
    program = folder / "bin" / "docker"
    program.parent.mkdir(exist_ok=True)
    record = folder / "calls"
    program.write_text(DOCKER.format(record=record, pull=pull, image=image))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return record


def test_the_cpu_engine_runs_behind_the_wheels_server(
    service: Service, config: DeployConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EW_WORKER_PYTHON", raising=False)
    plan = plan_service(service, config, LaunchOptions(triton_options=("--log-verbose=1",)))
    assert plan.launcher == "pytriton"
    arguments = plan.command.arguments
    assert arguments[0].endswith("pytriton/tritonserver/bin/tritonserver")
    assert {"--id=ew-abc", "--load-model=tiny", "--http-port=8000", "--allow-gpu-metrics=false"} <= set(
        arguments
    )
    assert arguments[-1] == "--log-verbose=1"
    assert plan.command.environment["EW_WORKER_PYTHON"] == sys.executable
    assert "CUDA_VISIBLE_DEVICES" not in plan.command.environment


def test_its_worker_can_live_in_another_environment(service: Service, config: DeployConfig) -> None:
    registry.save(Environment("second", "cpu", "venv", "d", prefix="/envs/second", finished=True))
    plan = plan_service(service, config, LaunchOptions(env="second"))
    assert plan.command.environment["EW_WORKER_PYTHON"] == "/envs/second/bin/python"


def docker_plan(image: str) -> LaunchPlan:
    return LaunchPlan("docker", "", Command("triton", ("docker",), Path("/log")), image=image)


def test_an_image_is_pulled_once(ew_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    record = docker(ew_home, monkeypatch, image=1)
    ensure_image(docker_plan("nvcr.io/x:1"), said.append)
    assert record.read_text().splitlines()[-1] == "pull nvcr.io/x:1"
    assert said == ["pulling nvcr.io/x:1"]
    record = docker(ew_home, monkeypatch, image=0)
    ensure_image(docker_plan("nvcr.io/x:2"), said.append)
    assert "pull nvcr.io/x:2" not in record.read_text()


def test_an_image_that_cannot_be_pulled_names_the_ways_out(
    ew_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker(ew_home, monkeypatch, pull=1)
    with pytest.raises(NetworkError) as caught:
        ensure_image(docker_plan("nvcr.io/x:1"), lambda text: None)
    assert "docker load" in caught.value.hint


def test_stop_ends_the_container_too(
    service: Service, ew_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = docker(ew_home, monkeypatch)
    stop = ("docker", "stop", "-t", "30", "ew-abc")
    state.save(replace(service, launcher="docker", stop_command=stop))
    loaded = state.load()
    assert loaded is not None
    assert loaded.stop_command == stop
    teardown.take_down(loaded, 0, lambda text: None)
    assert record.read_text() == "stop -t 30 ew-abc\n"
    assert state.load() is None
