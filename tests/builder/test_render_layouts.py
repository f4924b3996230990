"""Layouts that existing clients know: upstream's fixed names, its llmapi text model, vLLM's own backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from builder import pbtxt
from builder.lint import lint
from builder.render import render
from common.errors import UsageError
from common.paths import SOURCE_ROOT, Home
from tests.builder.rendering import KINDS, config_of, tensors
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

LLMAPI = json.loads((SOURCE_ROOT / "tests/data/contracts/triton_llmapi.json").read_text())


def config_in(home: Home, folder: str) -> Any:
    path = home.repository / folder / "config.pbtxt"
    return pbtxt.parse_config(path.read_text(encoding="utf-8"), source=str(path))


def folders(home: Home) -> set[str]:
    return {path.name for path in home.repository.iterdir() if path.is_dir()}


def pytorch_package(home: Home, version: str = "1.2.1", **arguments: Any) -> Path:
    """models/m as convert-trt --runtime pytorch leaves it, with a checkpoint inside."""
    folder = make_package(home.root / "models" / "m", byte_level(), era="pytorch", tensorrt_llm=version)
    (folder / "quantized").mkdir(exist_ok=True)
    (folder / "llm_args.json").write_text(
        json.dumps({"model": "quantized", "max_batch_size": 4, **arguments})
    )
    return folder


def test_upstream_layout_has_the_fixed_names(home: Home) -> None:
    render(config_of(m={}, second={}), home, only=["m"], layout="upstream")
    assert folders(home) == set(KINDS)
    assert lint(home.repository) == []
    steps = config_in(home, "ensemble").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["preprocessing", "tensorrt_llm", "postprocessing"]
    with pytest.raises(UsageError) as caught:
        render(config_of(m={}, second={}), home, layout="upstream")
    assert caught.value.code == "one_model_only"
    render(config_of(m={}, second={}), home, only=["second"], layout="upstream")
    assert render(config_of(m={}), home).removed
    assert {name.split("-")[0] for name in folders(home)} == {"m"}


@pytest.mark.parametrize(("version", "era"), [("1.2.1", "1.2_era"), ("1.3.0", "newest")])
def test_llmapi_has_exactly_the_contract(home: Home, version: str, era: str) -> None:
    pytorch_package(home, version)
    render(config_of(m={"engine": "cuda-trt"}), home, layout="llmapi")
    assert folders(home) == {"tensorrt_llm"}
    config, contract = config_in(home, "tensorrt_llm"), LLMAPI[era]
    assert tensors(config.input) == contract["inputs"]
    assert tensors(config.output) == contract["outputs"]
    assert (config.backend, config.max_batch_size) == ("python", 0)
    assert config.model_transaction_policy.decoupled
    assert lint(home.repository) == []


def test_llmapi_brings_model_yaml_for_upstreams_own_code(home: Home) -> None:
    folder = pytorch_package(home, kv_cache_config={"free_gpu_memory_fraction": 0.8})
    render(config_of(m={"engine": "cuda-trt"}), home, layout="llmapi")
    version = home.repository / "tensorrt_llm" / "1"
    assert yaml.safe_load((version / "model.yaml").read_text()) == {
        "model": str(folder / "quantized"),
        "max_batch_size": 4,
        "kv_cache_config": {"free_gpu_memory_fraction": 0.8},
        "backend": "pytorch",
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }
    names = {path.name for path in version.iterdir()}
    assert {"model.py", "bridge.py", "prompts.py", "protocol.py", "worker.json", "tokenizer"} <= names


def test_llmapi_of_the_cpu_engine_needs_no_model_yaml(home: Home) -> None:
    render(config_of(m={}), home, layout="llmapi")
    assert not (home.repository / "tensorrt_llm" / "1" / "model.yaml").exists()
    assert lint(home.repository) == []


def test_llmapi_cannot_serve_a_built_engine(home: Home) -> None:
    make_package(home.root / "models" / "m", byte_level(), engine="built")
    with pytest.raises(UsageError) as caught:
        render(config_of(m={"engine": "cuda-trt"}), home, layout="llmapi")
    assert caught.value.code == "layout_unfit"


def test_plain_vllm_models_keep_their_names_beside_each_other(home: Home) -> None:
    folder = pytorch_package(home, revision="abc")
    entry = {"engine": "cuda-vllm", "max_input_len": 1000, "max_output_len": 24}
    settings = {"kv_cache_free_gpu_mem_fraction": 0.5, "enable_kv_cache_reuse": False}
    render(config_of(a={**entry, "triton": settings}, b=entry), home, layout="upstream")
    assert folders(home) == {"a", "b"}
    config = config_in(home, "a")
    kinds = pbtxt.model_config_messages().ModelInstanceGroup.Kind
    assert config.backend == "vllm"
    assert [kinds.Name(group.kind) for group in config.instance_group] == ["KIND_MODEL"]
    assert json.loads((home.repository / "a" / "1" / "model.json").read_text()) == {
        "model": str(folder / "quantized"),
        "revision": "abc",
        "dtype": "float16",
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "max_num_seqs": 64,
        "max_model_len": 1024,
        "gpu_memory_utilization": 0.5,
        "enable_prefix_caching": False,
    }
    assert lint(home.repository) == []


def test_plain_vllm_loads_what_the_package_was_made_from(home: Home) -> None:
    render(config_of(m={"engine": "cuda-vllm"}), home, layout="upstream")
    arguments = json.loads((home.repository / "m" / "1" / "model.json").read_text())
    assert arguments["model"] == "m"  # the source's folder is not here: its hub id
