"""Which models share a tritonserver: one engine, environment and era each."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import DeployConfig, parse_config
from common.errors import UsageError
from runtime.environments import registry
from runtime.environments.registry import Environment
from runtime.groups import Group, groups_of
from runtime.launchers.service import LaunchOptions
from tests.builder.made import make_source, run


def config(**entries: dict[str, str]) -> DeployConfig:
    models = {name: {"model_path": f"models/{name}", **entry} for name, entry in entries.items()}
    return parse_config({"models": models})


def envs(groups: list[Group]) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(group.engine, group.models, group.options.env) for group in groups]


@pytest.fixture
def environments(ew_home: Path) -> None:
    for name, engine in (("left", "cpu"), ("right", "cpu"), ("ew-vllm", "cuda-vllm")):
        registry.save(Environment(name, engine, "venv", "d"))  # type: ignore[arg-type]


def test_models_of_one_engine_share_one_server(ew_home: Path) -> None:
    made = config(a={"engine": "cpu"}, b={"engine": "cuda-vllm"}, c={"engine": "cpu"})
    assert envs(groups_of(made, ("a", "b", "c"), LaunchOptions())) == [
        ("cpu", ("a", "c"), None),
        ("cuda-vllm", ("b",), None),
    ]


def test_an_entrys_environment_makes_a_server_of_its_own(environments: None) -> None:
    made = config(
        a={"engine": "cpu", "env": "left"}, b={"engine": "cpu", "env": "right"}, c={"engine": "cpu"}
    )
    assert envs(groups_of(made, ("a", "b", "c"), LaunchOptions())) == [
        ("cpu", ("a",), "left"),
        ("cpu", ("b",), "right"),
        ("cpu", ("c",), None),
    ]


def test_environments_of_the_command_line_go_to_the_models_of_their_engine(environments: None) -> None:
    made = config(a={"engine": "cpu", "env": "left"}, b={"engine": "cuda-vllm"})
    options = LaunchOptions(gpus=(1,))
    groups = groups_of(made, ("a", "b"), options, ("ew-vllm", "right"))
    assert envs(groups) == [("cpu", ("a",), "right"), ("cuda-vllm", ("b",), "ew-vllm")]
    assert all(group.options.gpus == (1,) for group in groups)


@pytest.mark.parametrize(
    ("named", "code"),
    [
        (("left", "right"), "two_environments"),
        (("ew-vllm",), "environment_engine"),
        (("x",), "environment_unknown"),
    ],
)
def test_environments_that_do_not_fit_are_refused(
    environments: None, named: tuple[str, ...], code: str
) -> None:
    with pytest.raises(UsageError) as caught:
        groups_of(config(a={"engine": "cpu"}), ("a",), LaunchOptions(), named)
    assert caught.value.code == code
    assert caught.value.hint


def test_the_eras_of_tensorrt_llm_do_not_share_a_server(ew_home: Path) -> None:
    source = make_source(ew_home / "hf")
    for era in ("engine", "pytorch"):
        run(source, ew_home / "models" / era, runtime=era, trtllm_version="1.2.1")
    made = config(engine={"engine": "cuda-trt"}, pytorch={"engine": "cuda-trt"})
    groups = groups_of(made, ("engine", "pytorch"), LaunchOptions())
    assert [group.models for group in groups] == [("engine",), ("pytorch",)]
