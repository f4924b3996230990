"""Migrating models that are described by an engine's arguments: llmapi, vLLM, triton_cli's output."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from builder.compat import Era
from builder.llm_args import parse_llm_options
from builder.migrate import Migration, migrate
from builder.render import render
from common.config import parse_config
from common.errors import RepositoryError
from common.paths import SOURCE_ROOT, Home
from tests.builder.lint.upstream import FILLED, STOCK_MODEL, write_engine, write_upstream
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

LLM = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "backend": "pytorch",
    "revision": "main",
    "tensor_parallel_size": 2,
    "dtype": "bfloat16",
    "max_batch_size": 32,
    "max_seq_len": 8192,
    "kv_cache_config": {"free_gpu_memory_fraction": 0.8, "enable_block_reuse": False, "max_tokens": 90000},
    "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
    "enable_chunked_prefill": True,
    "cuda_graph_config": {"max_batch_size": 32},
    "trust_remote_code": True,
    "max_batch_sise": 3,
    "triton_config": {"max_batch_size": 0, "decoupled": True, "multimodal": True},
}
VLLM = {
    "model": "Qwen/Qwen2.5-7B-Instruct",
    "max_num_seqs": 128,
    "max_model_len": 6000,
    "gpu_memory_utilization": 0.85,
    "enable_prefix_caching": False,
    "swap_space": 4,
    "disable_log_requests": True,
}


def write_llmapi(root: Path, document: Any = LLM, name: str = "tensorrt_llm") -> Path:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text('backend: "python"\n')
    (folder / "model.py").write_text(STOCK_MODEL)
    (folder / "model.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return root


def write_vllm(root: Path, name: str = "qwen") -> Path:
    """As `triton import --backend vllm` writes it."""
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text('backend: "vllm"\ninstance_group [ { kind: KIND_MODEL } ]\n')
    (folder / "model.json").write_text(json.dumps(VLLM))
    return root


def outcome_of(result: Migration) -> dict[str, str]:
    return {row.key: row.outcome for row in result.rows}


def llm_options(result: Migration) -> dict[str, Any]:
    """The options for tensorrt_llm.LLM in the convert-trt command, as convert-trt reads them."""
    own = ("--model", "--output", "--runtime", "--revision", "--dtype", "--tp-size", "--pp-size",
           "--max-batch-size", "--max-input-len", "--max-output-len")  # fmt: skip
    pairs = zip(result.command[2::2], result.command[3::2], strict=True)
    rest = [part for pair in pairs if pair[0] not in own for part in pair]
    return parse_llm_options(rest, "1.2.1")


def test_llmapi_to_pytorch_keeps_the_arguments(tmp_path: Path) -> None:
    result = migrate(write_llmapi(tmp_path), to="pytorch", package="models/llama")
    assert result.entry == {
        "engine": "cuda-trt",
        "model_path": "models/llama",
        "tensor_parallel_size": 2,
        "dtype": "bfloat16",
        "max_batch_size": 32,
        "max_input_len": 6144,
        "max_output_len": 2048,
        "triton": {"kv_cache_free_gpu_mem_fraction": 0.8},
    }
    assert llm_options(result) == {
        "kv_cache_config": {"enable_block_reuse": False, "max_tokens": 90000},
        "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
        "enable_chunked_prefill": True,
        "cuda_graph_config": {"max_batch_size": 32},
    }
    given = dict(zip(result.command[2::2], result.command[3::2], strict=True))
    assert given["--model"] == LLM["model"]
    assert (given["--runtime"], given["--revision"], given["--tp-size"]) == ("pytorch", "main", "2")
    lost = {row.key: row.note for row in result.of("dropped")}
    assert "weights" in lost["trust_remote_code"]
    assert "max_batch_sise" in lost["max_batch_sise"]
    parse_config({"models": {"llama": result.entry}})


def test_llmapi_to_engine_turns_arguments_into_settings(tmp_path: Path) -> None:
    result = migrate(write_llmapi(tmp_path), to="engine", package="p")
    assert result.entry["triton"] == {
        "kv_cache_free_gpu_mem_fraction": 0.8,
        "enable_kv_cache_reuse": False,
        "max_tokens_in_paged_kv_cache": 90000,
        "batch_scheduler_policy": "max_utilization",
        "enable_chunked_context": True,
    }
    assert outcome_of(result)["cuda_graph_config"] == "dropped"
    assert "--kv_cache_config.max_tokens" not in result.command


@pytest.mark.parametrize(("to", "engine"), [("pytorch", "cuda-vllm"), ("engine", "cuda-trt")])
def test_vllm_as_triton_cli_writes_it(tmp_path: Path, to: Era, engine: str) -> None:
    result = migrate(write_vllm(tmp_path), to=to, package="models/qwen")
    reuse = {"enable_kv_cache_reuse": False} if to == "engine" else {}
    assert result.entry == {
        "engine": engine,
        "model_path": "models/qwen",
        "max_batch_size": 128,
        "max_input_len": 3952,
        "max_output_len": 2048,
        "triton": {"kv_cache_free_gpu_mem_fraction": 0.85, **reuse},
    }
    assert {"swap_space", "disable_log_requests"} <= {row.key for row in result.of("dropped")}
    assert llm_options(result) == {}
    parse_config({"models": {"qwen": result.entry}})


def test_triton_cli_names_its_bls_after_the_model(tmp_path: Path) -> None:
    """`triton import --backend tensorrtllm`: no ensemble, the BLS under the model's name, a hub tokenizer."""
    engine = write_engine(tmp_path / "engine")
    values = {**FILLED, "bls_instance_count": "3", "triton_max_batch_size": "256"}
    repository = write_upstream(tmp_path / "repo", values, engine=engine, tokenizer=Path("Qwen/Qwen2.5-7B"))
    os.rename(repository / "tensorrt_llm_bls", repository / "qwen")
    for path in (repository / "qwen" / "config.pbtxt",):
        path.write_text(path.read_text().replace('name: "tensorrt_llm_bls"', 'name: "qwen"'))
    for name in ("config.pbtxt", "1"):
        path = repository / "ensemble" / name
        path.unlink() if path.is_file() else path.rmdir()
    (repository / "ensemble").rmdir()
    result = migrate(repository, to="pytorch", package="models/qwen")
    assert result.entry["max_batch_size"] == 256
    assert result.entry["triton"]["bls_instance_count"] == 3
    assert result.command[:4] == ["./ew", "convert-trt", "--model", "Qwen/Qwen2.5-7B"]


def test_an_engine_moves_to_pytorch_with_its_cache_settings(tmp_path: Path) -> None:
    settings = {
        "max_attention_window_size": "4096,512", "enable_chunked_context": "True",
        "batch_scheduler_policy": "max_utilization", "max_tokens_in_paged_kv_cache": "5000",
    }  # fmt: skip
    engine = write_engine(tmp_path / "engine")
    repository = write_upstream(tmp_path / "repo", {**FILLED, **settings}, engine=engine, tokenizer=tmp_path)
    result = migrate(repository, to="pytorch", package="p")
    options = llm_options(result)
    assert options["kv_cache_config"]["max_attention_window"] == [4096, 512]
    assert options["kv_cache_config"]["max_tokens"] == 5000
    assert options["scheduler_config"] == {"capacity_scheduler_policy": "MAX_UTILIZATION"}
    assert options["enable_chunked_prefill"] is True
    assert result.command[3] == "CHECKPOINT"


def test_every_argument_is_in_exactly_one_row(tmp_path: Path) -> None:
    wanted = {"model", *(set(LLM) - {"model", "kv_cache_config", "scheduler_config", "triton_config"})}
    wanted |= {
        f"kv_cache_config.{key}" for key in ("free_gpu_memory_fraction", "enable_block_reuse", "max_tokens")
    }
    wanted |= {"scheduler_config.capacity_scheduler_policy"}
    wanted |= {f"triton_config.{key}" for key in ("max_batch_size", "decoupled", "multimodal")}
    write_llmapi(tmp_path)
    for era in get_args(Era):
        keys = [row.key for row in migrate(tmp_path, to=era, package="p").rows]
        assert sorted(keys) == sorted(wanted)


def test_one_of_several_models(tmp_path: Path) -> None:
    write_vllm(tmp_path)
    write_llmapi(tmp_path)
    for name in (None, "nowhere"):
        with pytest.raises(RepositoryError, match=r"qwen, tensorrt_llm") as caught:
            migrate(tmp_path, to="pytorch", package="p", name=name)
        assert caught.value.code == "migrate_source"
    assert migrate(tmp_path, to="pytorch", package="p", name="qwen").entry["engine"] == "cuda-vllm"


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\0"])
def test_model_yaml_that_is_none(tmp_path: Path, content: str) -> None:
    write_llmapi(tmp_path)
    (tmp_path / "tensorrt_llm" / "1" / "model.yaml").write_text(content)
    with pytest.raises(RepositoryError) as caught:
        migrate(tmp_path, to="pytorch", package="p")
    assert caught.value.code == "migrate_source"


def test_what_render_writes_can_be_read_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folder = make_package(home.root / "m", byte_level(), era="pytorch")
    (folder / "llm_args.json").write_text(json.dumps({"model": "hub/name", "max_batch_size": 4}))
    render(parse_config({"models": {"m": {"engine": "cuda-trt", "model_path": "m"}}}), home, layout="llmapi")
    result = migrate(home.repository, to="pytorch", package="p")
    assert result.entry == {"engine": "cuda-trt", "model_path": "p", "max_batch_size": 4}
    assert result.command[3] == "hub/name"


def test_command_line_renders_where_the_package_is_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deploy").mkdir(parents=True)
    write_vllm(tmp_path / "old")
    command = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), "migrate", str(tmp_path / "old")]

    def run() -> str:
        done = subprocess.run(
            [*command, "--to", "pytorch", "--model", "qwen", "--write"],
            env={**os.environ, "EW_HOME": str(home)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = run().splitlines()
    assert shlex.split(told[-2])[:2] == ["./ew", "convert-trt"]
    assert told[-1] == "./ew render --model qwen"
    make_package(home / "models" / "qwen", byte_level(), era="pytorch")
    assert f"Rendered into {home / 'model_repository'}." in run()
    assert (home / "model_repository" / "qwen-tensorrt_llm" / "config.pbtxt").is_file()
