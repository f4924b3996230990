"""From upstream's repositories to a model entry: what carries over, what changes, what is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from builder.compat import Era
from builder.migrate import migrate
from common.config import parse_config
from common.errors import RepositoryError
from common.paths import SOURCE_ROOT
from tests.builder.lint.upstream import FILLED, write_engine, write_upstream

VALUES = {
    **FILLED,
    "triton_max_batch_size": "32",
    "max_queue_size": "77",
    "kv_cache_free_gpu_mem_fraction": "0.7",
    "enable_chunked_context": "True",
    "normalize_log_probs": "yes",
    "gpu_device_ids": "0,1",
    "batching_strategy": "V1",
    "bls_instance_count": "4",
    "logits_datatype": "TYPE_FP16",
    "decoupled_mode": "False",
}


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    engine = write_engine(tmp_path / "engine", ranks=2)
    config = json.loads((engine / "config.json").read_text())
    config["build_config"] = {"max_input_len": 3000, "max_seq_len": 4096}
    (engine / "config.json").write_text(json.dumps(config))
    return write_upstream(tmp_path / "repo", VALUES, engine=engine, tokenizer=tmp_path)


def test_engine_settings_carry_over(upstream: Path) -> None:
    result = migrate(upstream, to="engine", package="models/llama")
    assert result.entry == {
        "engine": "cuda-trt",
        "model_path": "models/llama",
        "max_batch_size": 32,
        "max_input_len": 3000,
        "max_output_len": 1096,
        "triton": {
            "max_queue_size": 77,
            "bls_instance_count": 4,
            "kv_cache_free_gpu_mem_fraction": 0.7,
            "enable_chunked_context": True,
            "gpu_device_ids": "0,1",
            "logits_datatype": "FP16",
        },
    }
    parse_config({"models": {"llama": result.entry}})
    changed = {row.key for row in result.of("changed")}
    assert {"decoupled", "gpt_model_type", "normalize_log_probs", "gpt_model_path"} <= changed


def test_every_value_is_in_exactly_one_row(upstream: Path) -> None:
    for era in get_args(Era):
        rows = migrate(upstream, to=era, package="p").rows
        keys = [(row.model, row.key) for row in rows]
        assert len(keys) == len(set(keys))
        assert all(row.note for row in rows if row.outcome != "carried")


def test_the_pytorch_runtime_keeps_less(upstream: Path) -> None:
    result = migrate(upstream, to="pytorch", package="p")
    kept = {"max_queue_size": 77, "bls_instance_count": 4, "kv_cache_free_gpu_mem_fraction": 0.7}
    assert result.entry["triton"] == kept
    notes = {row.key: row.note for row in result.of("changed")}
    assert "kv_cache_config.enable_block_reuse" in notes["enable_kv_cache_reuse"]
    assert {"gpu_device_ids", "logits_datatype"} <= {row.key for row in result.of("dropped")}


def test_a_repository_without_an_engine_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "repo" / "onnx" / "1").mkdir(parents=True)
    (tmp_path / "repo" / "onnx" / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    with pytest.raises(RepositoryError) as caught:
        migrate(tmp_path / "repo", to="engine", package="p")
    assert caught.value.code == "migrate_source"


def test_command_line_writes_the_entry(upstream: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deploy").mkdir(parents=True)
    command = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), "migrate", str(upstream)]
    options = ["--to", "engine", "--model", "llama", "--write"]
    done = subprocess.run(
        [*command, *options],
        env={**os.environ, "EW_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Changed its meaning" in done.stdout
    written = json.loads((home / "deploy" / "config.json").read_text())
    assert written["models"]["llama"]["triton"]["kv_cache_free_gpu_mem_fraction"] == 0.7
