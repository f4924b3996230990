"""setup, env and doctor from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.app import main
from runtime.environments import registry
from runtime.environments.registry import Environment
from tests.cli.ew import ew


def record(path: Path, name: str) -> Path:
    """A program on the path that writes its arguments into a file beside it."""
    script = path / name
    script.write_text(f'#!/bin/sh\necho "{name} $*" >> {path}/calls\n')
    script.chmod(0o755)
    return path / "calls"


def test_a_dry_run_prints_every_command_and_runs_none(tmp_path: Path) -> None:
    calls = record(tmp_path / "bin", "conda")
    answer = ew("setup", "--engine", "cuda-trt", "--env", "ew-trt", "--dry-run")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert lines[0].startswith("conda create --yes --name ew-trt")
    assert "--extra-index-url https://pypi.nvidia.com tensorrt_llm==1.2.1" in lines[-1]
    assert not calls.exists()
    assert registry.all_environments() == []


def test_a_dry_run_as_json_names_pins_problems_and_commands() -> None:
    document = ew("setup", "--engine", "cuda-vllm", "--version", "0.22.1", "--dry-run", "--json").document
    assert document["environment"] == "ew-vllm"
    assert document["pins"]["torch"] == "==2.11.0"
    assert [command["name"] for command in document["commands"]] == ["create", "pip", "engine"]
    assert "gpu" in [problem["id"] for problem in document["problems"]]


def test_a_machine_without_a_gpu_is_refused_before_anything_is_made(own_home: Path) -> None:
    answer = ew("setup", "--engine", "cuda-trt")
    assert answer.code == 5
    assert "--force" in answer.err
    assert registry.all_environments() == []


def test_force_goes_on_without_a_gpu(tmp_path: Path) -> None:
    calls = record(tmp_path / "bin", "docker")
    answer = ew("setup", "--engine", "cuda-trt", "--manager", "container", "--force")
    assert answer.code == 0
    assert "docker pull nvcr.io/nvidia/tritonserver:" in calls.read_text()
    assert "ew-trt is ready" in answer.out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--engine", "cuda-trt", "--version", "zero"], 2),
        (["--engine", "cuda-trt", "--env", "../x"], 2),
        (["--engine", "cuda-trt", "--find-links", "/nowhere"], 2),
        (["--engine", "cpu", "--env", "b", "--manager", "conda"], 2),
        (["--engine", "cuda-none"], 2),
    ],
)
def test_bad_options_are_refused(arguments: list[str], code: int) -> None:
    assert ew("setup", *arguments).code == code


def test_the_base_environment_is_checked() -> None:
    assert ew("setup", "--json").document["ready"] is True


def test_environments_are_listed_shown_and_removed(tmp_path: Path) -> None:
    calls = record(tmp_path / "bin", "conda")
    assert "No environments" in ew("env", "list").out
    registry.save(Environment("ew-trt", "cuda-trt", "conda", "d", version="1.2.1", done=("create",)))
    assert "unfinished" in ew("env", "list").out
    assert ew("env", "show", "ew-trt", "--json").document["state"] == "unfinished"
    assert ew("env", "show", "other").code == 2
    assert ew("env", "remove", "ew-trt", "--yes").code == 0
    assert "conda env remove --yes --name ew-trt" in calls.read_text()
    assert ew("env", "list", "--json").document == []


def test_the_base_environment_is_shown_and_not_removed() -> None:
    shown = ew("env", "show", "base", "--json").document
    assert (shown["engine"], shown["prefix"], shown["state"]) == ("cpu", sys.prefix, "ready")
    assert shown["packages"]["numpy"].startswith("1.")
    assert f"prefix: {sys.prefix}" in ew("env", "show", "base").out
    assert "Known: base" in ew("env", "show", "other").err
    removed = ew("env", "remove", "base", "--yes", "--json")
    assert (removed.code, removed.document["error"]["code"]) == (2, "environment_is_base")


def test_doctor_explains_a_log_and_exits_1(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text("ok\n[TensorRT-LLM][ERROR] Assertion failed: mpiSize == tp * pp (worldConfig.cpp:91)\n")
    answer = ew("doctor", "--log", log)
    assert answer.code == 1
    assert "[world_size_mpisize]" in answer.out
    assert f"{log}:2" in answer.out
    (finding,) = ew("doctor", "--log", log, "--json").document["findings"]
    assert finding["id"] == "world_size_mpisize"
    assert finding["fix"]


def test_doctor_reads_a_log_from_stdin() -> None:
    result = CliRunner().invoke(main, ["doctor", "--log", "-"], input="x\nAddress already in use\n")
    assert result.exit_code == 1
    assert "[port_in_use]" in result.stdout


def test_doctor_finds_nothing_in_a_clean_log(tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    log.write_text("I0101 server.cc:1] ready\n")
    answer = ew("doctor", "--log", log)
    assert (answer.code, answer.out.strip()) == (0, "Nothing found that is wrong.")


def test_doctor_writes_a_bundle(tmp_path: Path) -> None:
    answer = ew("doctor", "--offline", "--bundle", tmp_path / "report.tar.gz", "--json")
    assert (tmp_path / "report.tar.gz").is_file()
    assert json.loads(answer.out)["facts"]["service"] == "stopped"
