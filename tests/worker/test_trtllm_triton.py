"""A PyTorch-era model on the real tritonserver, with the stand-in of tests/worker/standin as its engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from builder.convert import convert
from builder.render import render
from builder.request import ConvertRequest
from common.config import DeployConfig
from common.paths import Home
from tests import tiny
from tests.worker.triton import Refused, Triton, tokens_of, wait_until

pytestmark = pytest.mark.e2e
STANDIN = Path(__file__).parent / "standin"


@pytest.fixture(scope="module")
def pytorch_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pytorch-era")
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"vocab_size": 512}')
    arguments = {"model": "hf", "max_batch_size": 8, "max_seq_len": 5000}
    (folder / "llm_args.json").write_text(json.dumps(arguments))
    return folder


def add(triton: Triton, name: str, package: Path, **options: Any) -> None:
    """Any backend name will do for the bridge; the repository's own is `python` here."""
    triton.add_model(
        name,
        package,
        engine="cuda-trt",
        options=options,
        env={"PYTHONPATH": str(STANDIN)},
        stall_timeout_s=10,
    )
    triton.load(name)


def test_the_contract_of_tensorrt_llm_over_its_pytorch_runtime(triton: Triton, pytorch_package: Path) -> None:
    add(triton, "pytorch", pytorch_package)
    events = triton.stream("pytorch", input_ids=[100], request_output_len=20, return_log_probs=True)
    assert tokens_of(events) == list(range(101, 121))
    assert len(events) > 1
    assert triton.generate("pytorch", input_ids=[100], end_id=103)["output_ids"] == [101, 102]
    stopped = triton.generate("pytorch", input_ids=[100], stop_words_list=[102, 103, 2, -1])
    assert stopped["output_ids"] == [101, 102, 103]
    with pytest.raises(Refused, match="KV cache manager refused"):
        triton.generate("pytorch", input_ids=[3])
    with pytest.raises(Refused, match="token ids are 0 to 511"):
        triton.generate("pytorch", input_ids=[512])
    stream = triton.open_stream("pytorch", input_ids=[100], request_output_len=4000)
    next(stream.events())
    stream.close()
    wait_until(lambda: triton.active("pytorch") == 0)
    triton.unload("pytorch")


def test_a_runtime_that_stops_is_started_again(triton: Triton, pytorch_package: Path) -> None:
    add(triton, "mortal", pytorch_package)
    with pytest.raises(Refused):
        triton.generate("mortal", input_ids=[6], request_output_len=20)
    wait_until(lambda: serves(triton, "mortal"))
    assert triton.metric("ew_worker_restarts", "mortal") == 1
    triton.unload("mortal")


def serves(triton: Triton, model: str) -> bool:
    try:
        return bool(triton.generate(model, input_ids=[100])["output_ids"])
    except Refused:
        return False


def test_an_argument_that_the_runtime_does_not_have_is_a_load_error(
    triton: Triton, pytorch_package: Path
) -> None:
    with pytest.raises(Refused, match="max_batch_sizes: Extra inputs are not permitted"):
        add(triton, "wrong", pytorch_package, llm_args={"max_batch_sizes": 4})


def test_what_is_converted_and_rendered_for_the_pytorch_era_serves(triton: Triton, tmp_path: Path) -> None:
    checkpoint = tiny.write_hf("yi", tmp_path / "hf")
    words = {f"w{index}": index for index in range(tiny.CONFIGS["yi"]["vocab_size"])}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(checkpoint / "tokenizer.json"))
    request = ConvertRequest(model=str(checkpoint), output=tmp_path / "package", runtime="pytorch")
    entry = {"engine": "cuda-trt", "model_path": str(convert(request).folder), "max_batch_size": 4}
    sizes = {"max_input_len": 64, "max_output_len": 32, "triton": {"bls": False}}
    config = DeployConfig.model_validate({"models": {"era": {**entry, **sizes}}})
    render(config, Home(tmp_path), output=triton.repository)
    worker = triton.repository / "era-tensorrt_llm" / "1" / "worker.json"
    worker.write_text(json.dumps({**json.loads(worker.read_text()), "env": {"PYTHONPATH": str(STANDIN)}}))
    triton.load("era-tensorrt_llm")
    events = triton.stream("era-tensorrt_llm", input_ids=[100], request_output_len=12)
    assert tokens_of(events)[-12:] == list(range(101, 113))
    triton.unload("era-tensorrt_llm")
