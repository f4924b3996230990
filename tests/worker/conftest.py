from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.convert import convert
from builder.request import ConvertRequest
from tests import tiny
from tests.worker.byte_tokenizer import write_byte_tokenizer
from tests.worker.triton import Triton
from worker.openvino import adapter
from worker.openvino.adapter import OpenVinoAdapter

# Long enough that a request can be caught while it runs: the tiny model makes hundreds of tokens a second.
CONTEXT = 8192


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights and a tokenizer of bytes, converted like any other model."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = tiny.write_hf("yi", folder / "hf")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    write_byte_tokenizer(checkpoint)
    request = ConvertRequest(
        model=str(checkpoint),
        output=folder / "package",
        dtype="float32",
        stage="checkpoint",
        cache=folder / "cache",
    )
    return convert(request).folder


@pytest.fixture(scope="session")
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """EW_CACHE_DIR for the session, so that tests neither use nor fill the checkout's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EW_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def engine(package: Path, graph_cache: Path) -> OpenVinoAdapter:
    """The real engine on the tiny model, in f32."""
    return adapter.load(package, {"precision": "exact", "kv_cache_tokens": CONTEXT, "max_batch_size": 16})


@pytest.fixture(scope="session")
def triton(package: Path, graph_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A tritonserver that serves the tiny model as `tiny`; tests add their own models."""
    server = Triton(tmp_path_factory.mktemp("triton"))
    try:
        server.wait_ready()
        server.add_model("tiny", package)
        server.load("tiny")
        yield server
    finally:
        server.stop()
