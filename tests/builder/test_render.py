"""Repositories: the contract's tensors and parameters, versions of TensorRT-LLM, layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from builder import pbtxt
from builder.lint import lint
from builder.render import render
from common.errors import ConfigError, PackageError, UsageError
from common.paths import Home
from tests.builder.rendering import CONTRACT, config_of, rendered, tensors, wanted
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

LEFT_OUT = re.compile(
    r"IMAGE|VIDEO|PIXEL|ASPECT|CROSS_ATTENTION|ATTENTION_MASK|VISION|num_draft|use_draft", re.IGNORECASE
)


def test_engine_model_has_exactly_the_contract(home: Home) -> None:
    render(config_of(m={}), home)
    config, contract = rendered(home), CONTRACT["tensorrt_llm"]
    assert tensors(config.input) == wanted(contract["inputs"])
    assert tensors(config.output) == wanted(contract["outputs"])
    text = (home.repository / "m-tensorrt_llm" / "config.pbtxt").read_text()
    assert re.findall(r'parameters \{ key: "(\w+)"', text) == contract["parameters"]
    assert (config.backend, config.max_batch_size) == ("tensorrtllm", 64)
    assert config.model_transaction_policy.decoupled
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 1024


def test_text_models_have_the_contract_without_images_and_drafts(home: Home) -> None:
    render(config_of(m={}), home)
    for kind in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        config, contract = rendered(home, kind=kind), CONTRACT[kind]
        for found, entries in ((config.input, contract["inputs"]), (config.output, contract["outputs"])):
            text = [entry for entry in wanted(entries) if not LEFT_OUT.search(entry["name"])]
            assert [tensor for tensor in tensors(found) if tensor["name"] != "STREAM"] == text
        assert set(contract["parameters"]) <= set(config.parameters)


@pytest.mark.parametrize(
    ("key", "value"), [("tensor_parallel_size", 2), ("pipeline_parallel_size", 3), ("dtype", "float32")]
)
def test_a_layout_that_the_package_does_not_have_is_refused(home: Home, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"models\.m\.{key} is {value}") as caught:
        render(config_of(m={key: value}), home)
    assert caught.value.code == "config_contradicts_package"
    assert not list(home.repository.glob("*"))


def test_bls_can_be_left_out(home: Home) -> None:
    render(config_of(m={}), home)
    report = render(config_of(m={"triton": {"bls": False}}), home)
    assert {name.split("/")[0] for name in report.removed} == {"m-tensorrt_llm_bls"}
    assert not (home.repository / "m-tensorrt_llm_bls").exists()


def test_ensemble_is_wired_as_in_the_contract(home: Home) -> None:
    render(config_of(m={}), home)
    config, contract = rendered(home, kind="ensemble"), CONTRACT["ensemble"]
    assert tensors(config.input) == wanted(contract["inputs"])
    assert tensors(config.output) == wanted(contract["outputs"])
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["m-preprocessing", "m-tensorrt_llm", "m-postprocessing"]
    for step, expected in zip(steps, contract["steps"], strict=True):
        inputs = {key: value for key, value in step.input_map.items() if key != "STREAM"}
        assert inputs == expected["input_map"]
        assert dict(step.output_map) == expected["output_map"]


def test_every_step_exists_with_matching_tensors(home: Home) -> None:
    render(config_of(m={}), home)
    ensemble = rendered(home, kind="ensemble")
    produced = {tensor.name: tensor.data_type for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        kind = step.model_name.removeprefix("m-")
        model = rendered(home, kind=kind)
        inputs = {tensor.name: tensor.data_type for tensor in model.input}
        outputs = {tensor.name: tensor.data_type for tensor in model.output}
        for name, source in step.input_map.items():
            assert inputs[name] == produced[source], (kind, name)
        produced.update({target: outputs[name] for name, target in step.output_map.items()})
    assert {tensor.name for tensor in ensemble.output} <= set(produced)


def test_settings_reach_the_parameters(home: Home) -> None:
    settings = {
        "enable_kv_cache_reuse": False,
        "kv_cache_free_gpu_mem_fraction": 0.55,
        "max_queue_size": 7,
        "gpu_device_ids": "0,1;2,3",
        "medusa_choices": "{0}, {0, 1}",
        "logits_datatype": "FP16",
    }
    render(config_of(m={"max_batch_size": 3, "triton": settings}), home)
    config = rendered(home)
    values = {key: value.string_value for key, value in config.parameters.items()}
    assert values["enable_kv_cache_reuse"] == "false"
    assert values["exclude_input_in_output"] == "true"
    assert values["kv_cache_free_gpu_mem_fraction"] == "0.55"
    assert values["batch_scheduler_policy"] == "guaranteed_no_evict"
    assert values["gpu_device_ids"] == "0,1;2,3"
    assert values["medusa_choices"] == "{0}, {0, 1}"
    assert values["lookahead_window_size"] == ""
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert list(config.dynamic_batching.preferred_batch_size) == [3]
    types = pbtxt.model_config_messages().DataType
    assert {types.Name(t.data_type) for t in config.output if "logits" in t.name} == {"TYPE_FP16"}


def test_worker_file_says_what_to_run(home: Home) -> None:
    entry = {"precision": "exact", "max_batch_size": 5, "max_input_len": 9, "max_output_len": 8}
    render(config_of(m={**entry, "kv_cache_tokens": 128}), home)
    folder = home.repository / "m-tensorrt_llm" / "1"
    document = json.loads((folder / "worker.json").read_text())
    assert document["engine"] == "cpu"
    assert (folder / document["package"]).resolve() == home.root / "models" / "m"
    assert document["options"] == {**entry, "kv_cache_tokens": 128, "threads": None}
    parameters = rendered(home).parameters
    assert parameters["gpt_model_path"].string_value == str(home.root / "models" / "m" / "checkpoint")


def test_a_sliding_window_reaches_the_cpu_engine(home: Home) -> None:
    render(config_of(m={"triton": {"max_attention_window_size": "4096"}}), home)
    document = json.loads((home.repository / "m-tensorrt_llm" / "1" / "worker.json").read_text())
    assert document["options"]["max_attention_window_size"] == 4096
    with pytest.raises(ConfigError) as caught:
        render(config_of(m={"triton": {"max_attention_window_size": "4096,512"}}), home)
    assert caught.value.code == "window_per_layer"


def test_a_moved_installation_still_fits(home: Home, tmp_path: Path) -> None:
    render(config_of(m={}), home)
    moved = home.root.rename(tmp_path / "moved")
    folder = moved / "model_repository" / "m-tensorrt_llm" / "1"
    document = json.loads((folder / "worker.json").read_text())
    assert (folder / document["package"]).resolve() == moved / "models" / "m"
    assert lint(moved / "model_repository") == []


def test_native_engine_needs_a_built_engine(home: Home) -> None:
    with pytest.raises(PackageError) as caught:
        render(config_of(m={"engine": "cuda-trt"}), home)
    assert caught.value.code == "engine_pending"
    assert caught.value.hint == "bash -c 'trtllm-build --x'"
    make_package(home.root / "models" / "m", byte_level(), engine="built", tensorrt_llm="1.2.1")
    render(config_of(m={"engine": "cuda-trt"}), home)
    folder = home.repository / "m-tensorrt_llm"
    assert rendered(home).parameters["gpt_model_path"].string_value.endswith("models/m/engine")
    assert sorted(path.name for path in (folder / "1").iterdir()) == [".keep"]


@pytest.mark.parametrize("version", [None, "0.17.0", "0.20.0"])
def test_older_tensorrt_llm(home: Home, version: str | None) -> None:
    """0.20's template: no token counts, no enable_trt_overlap, prompt tables in FP16."""
    make_package(home.root / "models" / "m", byte_level(), engine="built", tensorrt_llm="0.20.0")
    settings = {"prompt_embedding_table_data_type": "BF16"}
    render(config_of(m={"engine": "cuda-trt", "triton": settings}), home, trtllm_version=version)
    for kind in ("tensorrt_llm", "ensemble", "tensorrt_llm_bls"):
        config = rendered(home, kind=kind)
        names = {tensor.name for tensor in [*config.input, *config.output]}
        assert not [name for name in names if name.endswith(("num_input_tokens", "num_output_tokens"))]
        found = {tensor["name"]: tensor["data_type"] for tensor in tensors(config.input)}
        assert found["prompt_embedding_table"] == "TYPE_FP16"
    assert "num_input_tokens" not in str(rendered(home, kind="ensemble").ensemble_scheduling)
    assert set(CONTRACT["tensorrt_llm"]["parameters"]) - set(rendered(home).parameters) == {
        "enable_trt_overlap"
    }


@pytest.mark.parametrize("version", ["0.16.0", "1.3.0", "2.0", "latest"])
def test_versions_without_the_engine_backend_are_refused(home: Home, version: str) -> None:
    make_package(home.root / "models" / "m", byte_level(), engine="built")
    with pytest.raises(UsageError) as caught:
        render(config_of(m={"engine": "cuda-trt"}), home, trtllm_version=version)
    assert caught.value.code == "trtllm_version"


@pytest.mark.parametrize(
    ("engine", "options", "expected"),
    [
        ("cuda-hf", {}, {"dtype": "float16", "tensor_parallel_size": 1, "pipeline_parallel_size": 1}),
        ("cuda-hf", {"max_tokens_in_paged_kv_cache": 512}, {"kv_cache_tokens": 512}),
        ("cuda-trt", {"kv_cache_free_gpu_mem_fraction": 0.9}, {"gpu_memory_fraction": 0.9}),
        ("cuda-vllm", {"max_tokens_in_paged_kv_cache": 512}, {"kv_cache_tokens": None}),
        ("cuda-trt", {}, {"gpu_memory_fraction": None, "kv_cache_tokens": None}),
    ],
)
def test_the_package_says_what_the_config_does_not(
    home: Home, engine: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    make_package(home.root / "models" / "m", byte_level(), era="pytorch")
    render(config_of(m={"engine": engine, "triton": options}), home)
    document = json.loads((home.repository / "m-tensorrt_llm" / "1" / "worker.json").read_text())
    assert {name: document["options"].get(name) for name in expected} == expected


@pytest.mark.parametrize("entry", [{"engine": "cuda-vllm"}, {"engine": "cuda-hf"}, {"engine": "cuda-trt"}])
def test_engines_driven_from_python_get_the_bridge_as_their_model(home: Home, entry: dict[str, Any]) -> None:
    make_package(home.root / "models" / "m", byte_level(), era="pytorch", tensorrt_llm="1.3.0")
    render(config_of(m=entry), home)
    folder = home.repository / "m-tensorrt_llm" / "1"
    assert rendered(home).backend == "python"
    assert {"model.py", "protocol.py", "worker.json"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "worker.json").read_text())["engine"] == entry["engine"]
    assert tensors(rendered(home).input) == wanted(CONTRACT["tensorrt_llm"]["inputs"])
