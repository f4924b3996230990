"""Versions, eras, containers and the gate."""

from __future__ import annotations

import pytest

from builder.compat import check_architecture, choose_runtime, container_for, containers, era_of
from builder.gate import ServerVersions, check_loadable
from builder.gpus import gpu_by_name
from builder.manifest import EngineInfo, Keys, Layout, Manifest, Model, RuntimeTarget, Sizes, Source, Tool
from common.errors import PackageError, UnsupportedModelError, UsageError


@pytest.mark.parametrize(
    ("version", "era"),
    [
        ("0.9.0", "engine"),
        ("1.2.1", "engine"),
        ("1.3.0rc15", "engine"),
        ("1.3.0rc22", "pytorch"),
        ("1.4.0rc1", "pytorch"),
    ],
)
def test_the_cliff_between_the_eras(version: str, era: str) -> None:
    assert era_of(version) == era


def test_auto_prefers_what_is_at_hand() -> None:
    assert choose_runtime("auto", None, "1.1.0").tensorrt_llm == "1.1.0"
    assert choose_runtime("auto", None, "1.4.0rc1").era == "pytorch"
    assert choose_runtime("auto", "1.0.0", "1.4.0rc1").tensorrt_llm == "1.0.0"
    assert choose_runtime("engine", None, "1.4.0rc1").tensorrt_llm == "1.2.1"
    assert choose_runtime("auto", None, None).reason.startswith("the newest Triton container")


@pytest.mark.parametrize(
    ("choice", "version"), [("engine", "1.4.0rc1"), ("pytorch", "0.21.0"), ("auto", "latest")]
)
def test_contradictions(choice: str, version: str) -> None:
    with pytest.raises(UsageError):
        choose_runtime(choice, version, None)  # type: ignore[arg-type]


def test_architectures_by_era() -> None:
    check_architecture("LlamaForCausalLM", "engine")
    check_architecture("LlamaForCausalLM", "pytorch")
    with pytest.raises(UnsupportedModelError) as caught:
        check_architecture("BaichuanForCausalLM", "pytorch")
    assert caught.value.hint == "Use --runtime engine."


def _package(tensorrt_llm: str, tensorrt: str) -> Manifest:
    engine = EngineInfo(
        state="built",
        reason="test",
        tensorrt_llm=tensorrt_llm,
        tensorrt=tensorrt,
        gpu="L40S",
        compute_capability="8.9",
    )
    return Manifest(
        tool=Tool(version="0"),
        created="2026-01-01T00:00:00Z",
        keys=Keys(checkpoint="0" * 64),
        source=Source(model="m", kind="path", path="/m", digest="", files=[]),
        model=Model(architecture="LlamaForCausalLM", family="llama", reasons={}),
        layout=Layout(dtype="float16", tp_size=1, pp_size=1),
        sizes=Sizes(max_batch_size=1, max_input_len=1, max_output_len=1),
        runtime=RuntimeTarget(era="engine", tensorrt_llm=tensorrt_llm, reason="test"),
        plan={},
        engine=engine,
        files={},
    )


ROWS = [(row.tensorrt_llm, row.tensorrt) for row in containers()]
DISTINCT = list(dict.fromkeys(ROWS))


@pytest.mark.parametrize(("version", "tensorrt"), DISTINCT)
def test_each_container_loads_what_it_built(version: str, tensorrt: str) -> None:
    check_loadable("p", _package(version, tensorrt), ServerVersions(version, tensorrt), gpu_by_name("L40S"))


@pytest.mark.parametrize(("built", "served"), list(zip(DISTINCT, DISTINCT[1:], strict=False)))
def test_each_container_refuses_its_neighbours_engine(
    built: tuple[str, str], served: tuple[str, str]
) -> None:
    with pytest.raises(PackageError) as caught:
        check_loadable("p", _package(*built), ServerVersions(*served))
    container = container_for(built[0])
    assert container is not None
    assert container.tag in caught.value.hint


def test_another_gpu_generation_is_refused() -> None:
    made = _package("1.2.1", "10.14.1.48")
    with pytest.raises(PackageError) as caught:
        check_loadable("p", made, ServerVersions("1.2.1"), gpu_by_name("H100"))
    assert (caught.value.code, "8.9" in caught.value.why) == ("engine_gpu", True)


def test_unbuilt_engine_is_refused_with_its_command() -> None:
    pending = EngineInfo(state="pending", reason="no GPU", command=["docker", "run", "x y"])
    made = _package("1.2.1", "10.14.1.48").model_copy(update={"engine": pending})
    with pytest.raises(PackageError) as caught:
        check_loadable("p", made, ServerVersions("1.2.1"))
    assert (caught.value.code, caught.value.hint) == (
        "engine_pending",
        "On a GPU machine run: docker run 'x y'",
    )
