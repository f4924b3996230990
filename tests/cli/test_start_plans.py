"""`start --dry-run` for engines that need a GPU: real packages, the commands for a machine that has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.config import Engine
from runtime.environments import registry
from runtime.environments.registry import Environment
from tests.builder.made import run
from tests.cli.ew import Answer, ew

SMI = """#!/bin/sh
[ $# -gt 0 ] && {
echo "0, NVIDIA A100-SXM4-80GB, 81920, 81000, 8.0, 580.95.05"
echo "1, NVIDIA A100-SXM4-80GB, 81920, 80000, 8.0, 580.95.05"
exit 0; }
echo "CUDA Version: 13.0"
"""
DOCKER = """#!/bin/sh
case "$1" in info) echo '{"nvidia":{}}';; esac
"""


@pytest.fixture
def configured(source: Path, own_home: Path) -> Path:
    """A home with one package of each kind: engine era with two ranks, PyTorch era, and one for vLLM."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "engine-era": ("cuda-trt", {"runtime": "engine", "tp_size": 2}),
        "pytorch-era": ("cuda-trt", {"runtime": "pytorch", "trtllm_version": "1.2.1"}),
        "for-vllm": ("cuda-vllm", {}),
    }
    models = {}
    for model_id, (engine, options) in kinds.items():
        run(source, own_home / "models" / model_id, **options)
        models[model_id] = {"engine": engine, "model_path": f"models/{model_id}"}
        models[model_id]["tensor_parallel_size"] = options.get("tp_size", 1)
    (own_home / "deploy").mkdir(parents=True)
    (own_home / "deploy" / "config.json").write_text(json.dumps({"models": models}))
    return own_home


def add(tmp_path: Path, name: str, script: str) -> None:
    program = tmp_path / "bin" / name
    program.write_text(script)
    program.chmod(0o755)


def planned(engine: str, model: str, *options: str) -> dict[str, Any]:
    answer = start(engine, model, "--json", *options)
    assert answer.code == 0, answer.out + answer.err
    document: dict[str, Any] = answer.document
    (server,) = document["servers"]
    return {**server, "commands": document["commands"]}


def start(engine: str, model: str, *options: str) -> Answer:
    return ew("start", "--engine", engine, "--model", model, "--port", 18080, "--dry-run", *options)


def triton(document: dict[str, Any]) -> list[str]:
    command: list[str] = document["commands"][0]["command"]
    return command


def test_the_engine_era_runs_under_mpi_in_the_container_of_its_version(configured: Path) -> None:
    document = planned("cuda-trt", "engine-era")
    assert (document["launcher"], document["parallel"], document["gpus"]) == ("docker", "leader", [0, 1])
    command = triton(document)
    assert command[:2] == ["docker", "run"]
    assert document["image"] in command
    assert command.count(":") == 1
    assert "--load-model=engine-era" in command
    assert "--load-model=engine-era-tensorrt_llm" in command
    assert f"--volume={configured}/models/engine-era:{configured}/models/engine-era:ro" in command
    assert "no engine yet" in document["warnings"][0]


def test_the_pytorch_era_and_vllm_run_their_worker_in_the_container(configured: Path) -> None:
    for engine, model, kind in (("cuda-trt", "pytorch-era", "trtllm"), ("cuda-vllm", "for-vllm", "vllm")):
        document = planned(engine, model)
        assert document["parallel"] == "single"
        assert f"-{kind}-python-py3" in document["image"]
        command = triton(document)
        assert "--env=EW_WORKER_PYTHON=python3" in command
        assert "mpirun" not in command


def test_the_proxy_is_among_the_commands(configured: Path) -> None:
    names = [command["name"] for command in planned("cuda-vllm", "for-vllm")["commands"]]
    assert names == ["triton", "proxy"]


def test_gpus_image_and_own_options_reach_the_command(configured: Path, tmp_path: Path) -> None:
    add(tmp_path, "nvidia-smi", SMI)
    add(tmp_path, "docker", DOCKER)
    document = planned(
        "cuda-vllm",
        "for-vllm",
        "--gpus",
        "1",
        "--image",
        "my/image:1",
        "--shm-size",
        "8g",
        "--",
        "--log-verbose=1",
    )
    command = triton(document)
    assert '--gpus="device=1"' in command
    assert "--shm-size=8g" in command
    assert "my/image:1" in command
    assert command[-1] == "--log-verbose=1"


def test_text_output_can_be_pasted_and_names_the_launcher(configured: Path) -> None:
    answer = start("cuda-trt", "engine-era")
    assert answer.out.startswith("# cuda-trt: engine-era\n# launcher: docker (")
    assert "docker run --rm --init" in answer.out


def test_a_real_start_without_an_engine_is_refused_before_anything_runs(
    configured: Path, tmp_path: Path
) -> None:
    add(tmp_path, "nvidia-smi", SMI)
    add(tmp_path, "docker", DOCKER)
    answer = ew("start", "--engine", "cuda-trt", "--model", "engine-era", "--port", 18081)
    assert answer.code == 5
    assert "has no engine yet" in answer.err
    assert not (configured / "run" / "service.json").exists()


def test_a_machine_that_has_nothing_for_it_says_so(configured: Path) -> None:
    answer = ew("start", "--engine", "cuda-vllm", "--model", "for-vllm", "--port", 18082)
    assert answer.code == 5
    assert "./ew setup --engine cuda-vllm" in answer.err
    assert "docker: docker is not on the path" in answer.err


def test_an_environment_of_another_name_is_refused(configured: Path) -> None:
    answer = start("cuda-vllm", "for-vllm", "--env", "nothing")
    assert answer.code == 2
    assert "no environment 'nothing'" in answer.err


def test_models_of_several_engines_get_a_tritonserver_each_behind_one_proxy(configured: Path) -> None:
    models = ("engine-era", "pytorch-era", "for-vllm")
    named = [part for model in models for part in ("--model", model)]
    document = ew("start", *named, "--port", 18083, "--dry-run", "--json").document
    assert [(one["engine"], one["models"], one["parallel"]) for one in document["servers"]] == [
        ("cuda-trt", ["engine-era"], "leader"),
        ("cuda-trt", ["pytorch-era"], "single"),
        ("cuda-vllm", ["for-vllm"], "single"),
    ]
    *tritons, proxy = (command["command"] for command in document["commands"])
    published = [part for command in tritons for part in command if part.startswith("--publish=")]
    assert len(set(published)) == 9
    names = [part for command in tritons for part in command if part.startswith("--name=")]
    assert len(set(names)) == 3
    assert sum(part.startswith("--triton=") for part in proxy) == 3
    assert [part for part in proxy if part.startswith("--model=")] == [f"--model={m}" for m in models]
    assert "--port=18083" in proxy


def test_an_engine_that_contradicts_the_config_is_refused(configured: Path) -> None:
    answer = ew("start", "--engine", "cuda-vllm", "--model", "engine-era", "--dry-run")
    assert answer.code == 3
    assert "configured for the engine cuda-trt" in answer.err


@pytest.mark.parametrize(
    ("engine", "version", "model", "package", "launcher"),
    [
        ("cuda-trt", "1.2.1", "engine-era", "tensorrt_llm", "docker"),
        ("cuda-trt", "1.2.1", "pytorch-era", "tensorrt_llm", "pytriton"),
        ("cuda-vllm", "0.22.1", "for-vllm", "vllm", "pytriton"),
    ],
)
def test_the_guides_setup_and_start_print_the_commands_of_each_engine(
    configured: Path, engine: Engine, version: str, model: str, package: str, launcher: str
) -> None:
    setup = ("setup", "--engine", engine, "--env", "mine", "--manager", "venv", "--version", version)
    made = ew(*setup, "--dry-run")
    assert made.code == 0, made.err
    assert f"{package}=={version}" in made.out.splitlines()[-1]
    registry.save(Environment("mine", engine, "venv", "d", prefix="/envs/mine", finished=True))
    document = planned(engine, model, "--env", "mine")
    assert (document["launcher"], document["env"]) == (launcher, "mine")
    command = document["commands"][0]
    assert f"--load-model={model}" in command["command"]
    if launcher == "pytriton":
        assert command["environment"]["EW_WORKER_PYTHON"] == "/envs/mine/bin/python"
    else:
        assert document["image"] == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
