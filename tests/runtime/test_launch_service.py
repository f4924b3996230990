"""From a service's record to its launch, and the container that outlives its client."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from common.config import DeployConfig, parse_config
from common.errors import EnvironmentProblem, NetworkError
from runtime import state, teardown
from runtime.environments import registry
from runtime.environments.registry import Environment
from runtime.launch import Command
from runtime.launchers.request import LaunchPlan
from runtime.launchers.service import LaunchOptions, ensure_image, plan_service
from runtime.ports import TritonPorts, port_of, reserve_any
from runtime.processes import boot_id
from runtime.state import Server, Service
from tests.builder.made import make_source, run

DOCKER = """#!/bin/sh
echo "$*" >> {record}
case "$1" in pull) exit {pull};; image) exit {image};; esac
"""


@pytest.fixture
def server(ew_home: Path) -> Server:
    run(make_source(ew_home / "hf"), ew_home / "models" / "tiny")
    return Server("abc-1", "cpu", ("tiny",), TritonPorts(), time.time())


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
    server: Server, config: DeployConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EW_WORKER_PYTHON", raising=False)
    plan = plan_service(server, config, LaunchOptions(triton_options=("--log-verbose=1",)))
    assert plan.launcher == "pytriton"
    arguments = plan.command.arguments
    assert arguments[0].endswith("pytriton/tritonserver/bin/tritonserver")
    assert {"--id=ew-abc-1", "--load-model=tiny", "--http-port=8000", "--allow-gpu-metrics=false"} <= set(
        arguments
    )
    assert arguments[-1] == "--log-verbose=1"
    assert plan.command.environment["EW_WORKER_PYTHON"] == sys.executable
    assert "CUDA_VISIBLE_DEVICES" not in plan.command.environment


def test_its_worker_can_live_in_another_environment(
    server: Server, config: DeployConfig, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    registry.save(Environment("second", "cpu", "venv", "d", prefix=str(tmp_path), finished=True))
    plan = plan_service(server, config, LaunchOptions(env="second"))
    assert plan.command.environment["EW_WORKER_PYTHON"] == f"{tmp_path}/bin/python"


def test_a_broken_environment_is_refused_before_anything_starts(server: Server, config: DeployConfig) -> None:
    registry.save(Environment("second", "cpu", "venv", "d", prefix="/nowhere", finished=True))
    with pytest.raises(EnvironmentProblem) as caught:
        plan_service(server, config, LaunchOptions(env="second"))
    assert caught.value.code == "environment_broken"
    assert caught.value.hint.endswith("./ew setup --engine cpu --env second")


def free_port() -> int:
    with reserve_any() as reserved:
        return port_of(reserved)


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


def test_stop_ends_the_container_too(server: Server, ew_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = docker(ew_home, monkeypatch)
    stop = ("docker", "stop", "-t", "30", "ew-abc-1")
    ports = TritonPorts(free_port(), free_port(), free_port())
    contained = server.with_changes(launcher="docker", stop_command=stop, ports=ports)
    state.save(Service("abc", "ready", boot_id(), time.time(), "127.0.0.1", free_port(), "key", (contained,)))
    loaded = state.load()
    assert loaded is not None
    assert loaded.servers[0].stop_command == stop
    teardown.take_down(loaded, 0, lambda text: None)
    assert record.read_text() == "stop -t 30 ew-abc-1\n"
    assert state.load() is None
