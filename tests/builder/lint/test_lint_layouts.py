"""Mutations of upstream's layouts: five fixed names, the llmapi text model, plain vLLM, several versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.lint import lint
from builder.render import render
from builder.repository_target import Layout
from common.config import parse_config
from common.paths import Home
from tests.builder.lint.mutating import found, mutate
from tests.builder.lint.upstream import STOCK_MODEL
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

CONFIG = "tensorrt_llm/config.pbtxt"
YAML = "tensorrt_llm/1/model.yaml"
MODEL = "tensorrt_llm/1/model.py"
VLLM = "m/config.pbtxt"
ARGUMENTS = "m/1/model.json"
PRE = "m-preprocessing/1"
WORKER = "m-tensorrt_llm/1/worker.json"
Change = Callable[[Path], object]


def rendered(root: Path, layout: Layout, **entry: Any) -> Path:
    """A repository of the model m in `root`, and everything that it refers to."""
    home = Home(root)
    for name in ("m", "old"):
        folder = make_package(home.root / name, byte_level(), era="pytorch")
        (folder / "quantized").mkdir(exist_ok=True)
        arguments = {"model": "quantized", "max_batch_size": 4, "kv_cache_config": {"tokens_per_block": 32}}
        (folder / "llm_args.json").write_text(json.dumps(arguments))
    render(parse_config({"models": {"m": {"model_path": "m", **entry}}}), home, layout=layout)
    return home.repository


@pytest.fixture(scope="module")
def good_stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An llmapi repository with upstream's own code: its model.py and model.yaml, and nothing of ew."""
    repository = rendered(tmp_path_factory.mktemp("stock"), "llmapi", engine="cuda-trt")
    for path in (repository / "tensorrt_llm" / "1").iterdir():
        if path.suffix == ".py" or path.name == "worker.json":
            path.unlink()
    (repository / MODEL).write_text(STOCK_MODEL)
    return repository


@pytest.fixture(scope="module")
def good_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain vLLM model over two GPUs."""
    repository = rendered(tmp_path_factory.mktemp("vllm"), "upstream", engine="cuda-vllm")
    mutate(repository / ARGUMENTS, r'"tensor_parallel_size": 1', '"tensor_parallel_size": 2')
    return repository


@pytest.fixture(scope="module")
def good_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of a model with two versions."""
    root = tmp_path_factory.mktemp("versions")
    rendered(root, "ew", engine="cpu", version=2, older_versions={"1": "old"})
    return root


@pytest.fixture
def stock(good_stock: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_stock, tmp_path / "stock"))


@pytest.fixture
def vllm(good_vllm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_vllm, tmp_path / "vllm"))


@pytest.fixture
def versions(good_versions: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_versions, tmp_path / "versions")) / "model_repository"


LLMAPI_MUTATIONS = [
    ("EW701", YAML, YAML, r"model: .*\n", ""),
    ("EW701", YAML, YAML, r"model: .*\n", "model: [a, b\n"),
    ("EW701", YAML, YAML, r"^", "- "),
    ("EW702", YAML, YAML, r"max_batch_size: 4", "max_batch_sise: 4"),
    ("EW702", YAML, YAML, r"max_batch_size: 4", "max_batch_size: many"),
    ("EW702", YAML, YAML, r"tokens_per_block", "token_per_block"),
    ("EW702", YAML, YAML, r"tokens_per_block: 32", "tokens_per_block: yes"),
    ("EW702", YAML, YAML, r"tokens_per_block", "free_gpu_mem_fraction"),
    ("EW703", YAML, YAML, r"decoupled: true", "decoupled: false"),
    ("EW703", YAML, YAML, r"triton_config:[\s\S]*", "triton_config: on\n"),
    ("EW704", YAML, YAML, r"  max_batch_size: 0", "  max_batch_size: 8"),
    ("EW704", CONFIG, CONFIG, r"backend: .*\n", 'backend: "python"\nmax_batch_size: 8\n'),
    ("EW705", CONFIG, CONFIG, r"model_transaction_policy .*\n", ""),
    ("EW705", CONFIG, CONFIG, r"decoupled: true", "decoupled: false"),
    ("EW706", CONFIG, CONFIG, r'input { name: "text_input".*\n', ""),
    ("EW706", CONFIG, CONFIG, r'output { name: "text_output".*\n', ""),
    ("EW706", CONFIG, CONFIG, r'"streaming"', '"stream"'),
    ("EW706", CONFIG, CONFIG, r'"sampling_param_max_tokens"', '"max_tokens"'),
    ("EW706", CONFIG, CONFIG, r'(top_k" data_type:) TYPE_INT32', r"\1 TYPE_INT64"),
    ("EW706", CONFIG, CONFIG, r'(cumulative_logprob" .*) dims: \[ -1 \]', r"\1 dims: [ -1, -1 ]"),
    ("EW707", YAML, YAML, r"model: /.*/", "model: /srv/nowhere/"),
    ("EW411", YAML, YAML, r"\Z", "trust_remote_code: true\n"),
    ("EW313", CONFIG, CONFIG, r"count: 1", "count: 2"),
    ("EW102", CONFIG, CONFIG, r"instance_group \[", "instance_group"),
    ("EW104", CONFIG, CONFIG, r'name: "tensorrt_llm"', 'name: "llmapi"'),
    ("EW106", CONFIG, CONFIG, r'backend: "python"\n', ""),
    ("EW402", MODEL, MODEL, r"def execute\(", "def execute(("),
    ("EW404", MODEL, MODEL, r"class TritonPythonModel", "class TritonModel"),
    ("EW404", MODEL, MODEL, r"(?s)class TritonPythonModel.*", "class TritonPythonModel(object):\n    pass\n"),
]
VERSION_CHANGES: list[tuple[str, str, Change]] = [
    ("EW110", "m-tensorrt_llm/config.pbtxt", lambda r: shutil.rmtree(r / "m-tensorrt_llm/1")),
    ("EW401", "m-tensorrt_llm_bls/config.pbtxt", lambda r: (r / "m-tensorrt_llm_bls/1/model.py").unlink()),
    ("EW402", f"{PRE}/prompts.py", lambda r: (r / PRE / "prompts.py").write_text("(")),
    ("EW406", "m-preprocessing/config.pbtxt", lambda r: shutil.rmtree(r / PRE / "tokenizer")),
    ("EW601", WORKER, lambda r: (r / WORKER).write_text("{")),
]
VLLM_MUTATIONS = [
    ("EW409", ARGUMENTS, ARGUMENTS, r'"model": .*\n', ""),
    ("EW409", ARGUMENTS, ARGUMENTS, r"}\s*\Z", ""),
    ("EW707", ARGUMENTS, ARGUMENTS, r'"model": "/', '"model": "/srv/nowhere/'),
    ("EW801", VLLM, VLLM, r"KIND_MODEL", "KIND_GPU"),
    ("EW801", VLLM, VLLM, r"instance_group .*\n", ""),
    ("EW802", VLLM, VLLM, r"instance_group", "max_batch_size: 8\ninstance_group"),
    ("EW802", VLLM, VLLM, r"instance_group", "dynamic_batching { }\ninstance_group"),
    ("EW803", "m/1/multi_lora.json", ARGUMENTS, r'"dtype"', '"enable_lora": "true", "dtype"'),
    ("EW804", ARGUMENTS, ARGUMENTS, r'"gpu_memory_utilization": 0.9', '"gpu_memory_utilization": 90'),
    ("EW804", ARGUMENTS, ARGUMENTS, r'"max_model_len": \d+', '"max_model_len": "long"'),
    ("EW804", ARGUMENTS, ARGUMENTS, r'"pipeline_parallel_size": 1', '"pipeline_parallel_size": 0'),
    ("EW411", ARGUMENTS, ARGUMENTS, r'"dtype"', '"trust_remote_code": true, "dtype"'),
    ("EW103", VLLM, VLLM, r'backend: "vllm"', 'backend: "${backend}"'),
]


@pytest.mark.parametrize("entry", [{"engine": "cuda-trt"}, {"engine": "cpu"}, {"engine": "cuda-hf"}])
@pytest.mark.parametrize("layout", ["upstream", "llmapi"])
def test_good_repositories_give_nothing(tmp_path: Path, layout: Layout, entry: dict[str, Any]) -> None:
    repository = rendered(tmp_path, layout, **entry)
    assert lint(repository) == []
    assert found(repository, flavour="trtllm", trtllm_version="1.2.1") == set()


def test_good_stock_and_vllm_repositories_give_nothing(stock: Path, vllm: Path) -> None:
    assert lint(stock) == []
    assert lint(vllm) == []
    assert found(vllm, flavour="vllm") == set()


def test_the_template_that_upstream_ships_only_cannot_stream(stock: Path) -> None:
    mutate(stock / CONFIG, r"model_transaction_policy .*\n", "")
    shipped = "model: TinyLlama/TinyLlama-1.1B-Chat-v1.0\nbackend: pytorch\ntensor_parallel_size: 1\n"
    (stock / YAML).write_text(f"{shipped}triton_config:\n  max_batch_size: 0\n  decoupled: False\n")
    assert found(stock) == {("EW705", CONFIG)}


@pytest.mark.parametrize(("rule", "file", "changed", "pattern", "replacement"), LLMAPI_MUTATIONS)
def test_llmapi_mutation_is_found(
    stock: Path, rule: str, file: str, changed: str, pattern: str, replacement: str
) -> None:
    mutate(stock / changed, pattern, replacement)
    assert (rule, file) in found(stock)


@pytest.mark.parametrize(("rule", "file", "changed", "pattern", "replacement"), VLLM_MUTATIONS)
def test_vllm_mutation_is_found(
    vllm: Path, rule: str, file: str, changed: str, pattern: str, replacement: str
) -> None:
    mutate(vllm / changed, pattern, replacement)
    assert (rule, file) in found(vllm)


def test_ews_own_llmapi_model_needs_its_parameters_and_tokenizer(tmp_path: Path) -> None:
    repository = rendered(tmp_path, "llmapi", engine="cpu")
    mutate(repository / CONFIG, r'parameters { key: "max_queue_size".*\n', "")
    shutil.rmtree(repository / "tensorrt_llm" / "1" / "tokenizer")
    assert found(repository) == {("EW405", CONFIG), ("EW406", CONFIG)}


def test_lists_are_good_arguments(stock: Path) -> None:
    mutate(stock / YAML, r"tokens_per_block: 32", "max_attention_window: [4096, 512]")
    assert found(stock) == set()


def test_missing_files_of_upstreams_layouts(stock: Path, vllm: Path) -> None:
    (stock / YAML).unlink()
    (stock / MODEL).unlink()
    assert {("EW701", YAML), ("EW401", CONFIG)} <= found(stock)
    (vllm / ARGUMENTS).unlink()
    assert ("EW409", ARGUMENTS) in found(vllm)


@pytest.mark.parametrize(
    ("flavour", "breached"), [("trtllm", True), ("", True), ("vllm", False), (None, False)]
)
def test_the_container_must_have_the_backend(vllm: Path, flavour: str | None, breached: bool) -> None:
    assert (("EW315", VLLM) in found(vllm, flavour=flavour)) is breached


def test_arguments_are_judged_by_the_version_that_is_given(stock: Path) -> None:
    mutate(stock / YAML, r"\Z", "batched_logits_processor: null\n")
    assert found(stock) == set()
    mutate(stock / YAML, r"batched_logits_processor: null", "allreduce_strategy: SPEEDY")
    assert ("EW702", YAML) in found(stock, trtllm_version="1.2.1")


@pytest.mark.parametrize(("rule", "file", "change"), VERSION_CHANGES)
def test_older_versions_that_are_served_are_checked(
    versions: Path, rule: str, file: str, change: Change
) -> None:
    assert lint(versions) == []
    change(versions)
    assert (rule, file) in found(versions)


@pytest.mark.parametrize(
    ("policy", "checked"),
    [
        ("", False),
        ("version_policy: { all: { } }", True),
        ("version_policy: { latest: { num_versions: 2 } }", True),
    ],
)
def test_versions_that_are_not_served_are_left_alone(tmp_path: Path, policy: str, checked: bool) -> None:
    repository = rendered(tmp_path, "ew", engine="cpu", version=2)
    folder = repository / "m-preprocessing"
    (folder / "1").mkdir()
    mutate(folder / "config.pbtxt", r"\Z", f"{policy}\n")
    assert (("EW401", "m-preprocessing/config.pbtxt") in found(repository)) is checked
