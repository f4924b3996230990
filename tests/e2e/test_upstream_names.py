"""Upstream's five fixed names on a real tritonserver with the cpu worker, in two versions side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from builder.convert import convert
from builder.lint import lint
from builder.render import render
from builder.request import ConvertRequest
from common.config import DeployConfig, parse_config
from common.paths import Home
from tests.e2e.conftest import Installation, as_service, byte_tokenizer
from tests.e2e.triton_process import Triton, triton
from tests.tiny import write_hf

PROMPT = "The quick brown fox"
WHOLE = {"max_tokens": 12, "exclude_input_in_output": True}


def config_of(old: Path, new: Path) -> DeployConfig:
    entry = {"engine": "cpu", "precision": "exact", "max_batch_size": 8, "max_input_len": 64}
    versions = {"model_path": str(new), "version": 2, "older_versions": {"1": str(old)}}
    return parse_config({"models": {"m": {**entry, **versions, "max_output_len": 64}}})


@pytest.fixture(scope="module")
def other_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen 2 over the same bytes as the tiny Llama."""
    folder = tmp_path_factory.mktemp("other")
    source = write_hf("qwen2", folder / "hf")
    (source / "tokenizer.json").write_text(json.dumps(byte_tokenizer()), encoding="utf-8")
    request = ConvertRequest(str(source), folder / "other", dtype="float32", stage="checkpoint")
    convert(replace(request, max_batch_size=8, max_input_len=64, max_output_len=64))
    return folder / "other"


@pytest.fixture(scope="module")
def server(
    tiny_package: Path, other_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Triton]:
    home = Home(tmp_path_factory.mktemp("names"))
    render(config_of(tiny_package, other_package), home, layout="upstream")
    assert lint(home.repository) == []
    with triton(home.repository, home.root) as running:
        yield running


def generate(server: Triton, path: str, **fields: Any) -> dict[str, Any]:
    reply = requests.post(f"{server.http}/v2/models/{path}/generate", json=fields, timeout=60)
    assert reply.status_code == 200, reply.text
    document: dict[str, Any] = reply.json()
    return document


def text_of(server: Triton, path: str) -> str:
    text: str = generate(server, path, text_input=PROMPT, **WHOLE)["text_output"]
    return text


def tokens_of(server: Triton, path: str) -> list[int]:
    ids = [byte + 3 for byte in PROMPT.encode()]
    fields = {"input_ids": ids, "input_lengths": len(ids), "request_output_len": 12}
    tokens: list[int] = generate(server, path, **fields)["output_ids"]
    return tokens


@pytest.mark.e2e
def test_ensemble_and_bls_give_the_newest_version(server: Triton) -> None:
    newest = text_of(server, "tensorrt_llm_bls/versions/2")
    assert newest
    assert text_of(server, "ensemble") == text_of(server, "tensorrt_llm_bls") == newest


@pytest.mark.e2e
def test_the_older_version_answers_beside_it(server: Triton) -> None:
    assert tokens_of(server, "tensorrt_llm") == tokens_of(server, "tensorrt_llm/versions/2")
    assert tokens_of(server, "tensorrt_llm/versions/1") != tokens_of(server, "tensorrt_llm")
    old = text_of(server, "tensorrt_llm_bls/versions/1")
    assert old != text_of(server, "tensorrt_llm_bls/versions/2")


@pytest.mark.e2e
def test_every_model_says_which_versions_it_has(server: Triton) -> None:
    index = requests.post(f"{server.http}/v2/repository/index", timeout=60).json()
    ready = {(entry["name"], entry["version"]) for entry in index if entry["state"] == "READY"}
    kinds = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
    assert ready == {("ensemble", "2"), *((kind, version) for kind in kinds for version in "12")}


@pytest.mark.e2e
def test_start_serves_both_versions(tiny: Installation, other_package: Path) -> None:
    entry = {
        "engine": "cpu", "precision": "exact", "max_batch_size": 8, "max_input_len": 64, "max_output_len": 64,
        "model_path": str(other_package), "version": 2, "older_versions": {"1": tiny.model},
    }  # fmt: skip
    config = tiny.home / "deploy" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"models": {"m": entry}}))
    started = as_service(tiny, replace(tiny, model="m").start(), "m")
    for version in ("1", "2"):
        ready = requests.get(
            f"{started.triton_url}/v2/models/m-tensorrt_llm/versions/{version}/ready", timeout=60
        )
        assert ready.ok
