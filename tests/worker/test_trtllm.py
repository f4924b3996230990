"""The adapter of TensorRT-LLM's PyTorch runtime, against a stand-in built from its published interface.

What only TensorRT-LLM itself can show is in none of these: that its samplers, statistics, health check and
shutdown are as published. The stand-in refuses arguments that the interface does not have.
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.llm_args import check_llm_options, contract
from common.errors import CheckpointError, ConfigError, EngineError, PackageError
from worker.protocol import Finish, GenerationRequest, Refusal, Sampling, Status, Update
from worker.trtllm.options import EngineOptions, llm_arguments
from worker.trtllm.restrictions import Restrictions, restrictions
from worker.validate import RequestRefused, check_request

STANDIN = Path(__file__).parent / "standin"
MODULES = ("tensorrt_llm", "tensorrt_llm.llmapi", "worker.trtllm.load", "worker.trtllm.sampling")
VOCAB = 64
OWN = ("model", "dtype", "tensor_parallel_size", "pipeline_parallel_size", "max_batch_size", "max_input_len",
       "max_seq_len", "trust_remote_code")  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "hf").mkdir()
    config = {"vocab_size": VOCAB, "max_position_embeddings": 128}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    folder = tmp_path / "package"
    folder.mkdir()
    arguments = {"model": str(tmp_path / "hf"), "dtype": "bfloat16", "max_batch_size": 8, "max_seq_len": 100}
    cache = {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.9}
    (folder / "llm_args.json").write_text(json.dumps({**arguments, "kv_cache_config": cache}))
    return folder


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """worker.trtllm.load with the stand-in."""
    monkeypatch.syspath_prepend(str(STANDIN))
    monkeypatch.setenv("PYTHONPATH", "")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("worker.trtllm.load")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def adapter(module: Any, package: Path) -> Any:
    return module.load(package, {"max_input_len": 60, "max_output_len": 40})


def submit(adapter: Any, number: int, prompt: list[int], **sampling: Any) -> None:
    request = GenerationRequest(number, array("i", prompt), Sampling(**{"max_tokens": 6, **sampling}))
    adapter.submit(request)


def finish(adapter: Any) -> dict[int, list[Update | Refusal]]:
    """Step until all is done; what came, by request."""
    results: dict[int, list[Update | Refusal]] = {}
    deadline = time.monotonic() + 20
    while adapter.busy:
        assert time.monotonic() < deadline
        for result in adapter.step():
            results.setdefault(result.request_id, []).append(result)
    return results


def tokens(results: list[Update | Refusal]) -> list[int]:
    return [token for result in results if isinstance(result, Update) for token in result.tokens]


def test_requests_run_together_and_stream(adapter: Any) -> None:
    submit(adapter, 1, [10, 20])
    submit(adapter, 2, [30], max_tokens=9)
    found = finish(adapter)
    assert tokens(found[1]) == [21, 22, 23, 24, 25, 26]
    assert tokens(found[2]) == list(range(31, 40))
    assert len(found[2]) > 1
    assert found[1][-1].finish == Finish.LENGTH  # type: ignore[union-attr]
    assert found[1][-1].scheduled_ns > 0  # type: ignore[union-attr]


def test_the_end_id_ends_and_is_left_out(adapter: Any) -> None:
    submit(adapter, 1, [20], end_id=23)
    submit(adapter, 2, [20], end_id=None)
    found = finish(adapter)
    assert (tokens(found[1]), found[1][-1].finish) == ([21, 22], Finish.END_ID)  # type: ignore[union-attr]
    assert len(tokens(found[2])) == 6


def test_stop_words_are_kept_and_end_the_request_inside_too(adapter: Any) -> None:
    submit(adapter, 1, [20], max_tokens=40, stop_words=((22, 23),))
    found = finish(adapter)
    assert (tokens(found[1]), found[1][-1].finish) == ([21, 22, 23], Finish.STOP_WORDS)  # type: ignore[union-attr]
    assert_idle(adapter)


def test_cancelling_aborts_inside(adapter: Any) -> None:
    submit(adapter, 1, [20], max_tokens=40)
    while not adapter.step():
        pass
    adapter.cancel(1)
    adapter.cancel(99)
    assert (adapter.active, adapter.busy) == (0, False)
    assert_idle(adapter)
    assert adapter.step() == []


def assert_idle(adapter: Any) -> None:
    """The LLM itself runs nothing any more."""
    llm = adapter._follower._llm
    deadline = time.monotonic() + 5
    while llm._running:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        (3, Status.INTERNAL, "KV cache manager refused"),
        (4, Status.UNAVAILABLE, "timeout"),
        (5, Status.UNAVAILABLE, "cancelled"),
        (7, Status.INVALID, "max_num_tokens"),
    ],
)
def test_a_request_that_fails_ends_alone(adapter: Any, fault: int, status: Status, says: str) -> None:
    submit(adapter, 1, [20], max_tokens=12)
    submit(adapter, 2, [fault])
    found = finish(adapter)
    [refusal] = [one for one in found[2] if isinstance(one, Refusal)]
    assert refusal.status == status
    assert says in refusal.message
    assert tokens(found[1]) == list(range(21, 33))


def test_a_dead_llm_is_an_engine_error(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.trtllm.adapter.SILENCE_SECONDS", 0.05)
    submit(adapter, 1, [6])
    with pytest.raises(EngineError, match="has stopped"):
        finish(adapter)


def test_log_probs_are_those_of_the_chosen_tokens(adapter: Any) -> None:
    submit(adapter, 1, [20], log_probs=True, max_tokens=3)
    submit(adapter, 2, [20], max_tokens=3)
    found = finish(adapter)
    values = [value for one in found[1] if isinstance(one, Update) for value in one.log_probs or ()]
    assert values == [-0.5, -0.5, -0.5]
    assert all(one.log_probs is None for one in found[2] if isinstance(one, Update))


def test_bad_words_penalties_and_min_tokens_are_carried_out(adapter: Any) -> None:
    submit(adapter, 1, [20], bad_words=((22,), (23, 24)))
    submit(adapter, 2, [20], end_id=22, min_tokens=3)
    submit(adapter, 3, [20, 21, 22, 20], repetition_penalty=2.0, max_tokens=1)
    submit(adapter, 4, [20], token_bias=((40, 100.0),), max_tokens=2)
    found = finish(adapter)
    assert tokens(found[4]) == [40, 40]
    assert tokens(found[1]) == [21, 23, 25, 26, 27, 28]
    assert tokens(found[2]) == [21, 23, 24, 25, 26, 27]
    assert tokens(found[3]) == [23]


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    for number, rank in ((1, 8), (7, 16)):
        folder = tmp_path / "loras" / str(number)
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    return tmp_path / "loras"


def test_a_request_takes_its_adapter(module: Any, package: Path, adapters: Path) -> None:
    adapter = module.load(package, {"lora_dir": str(adapters)})
    config = adapter._follower._llm.arguments["lora_config"]
    assert (config["max_lora_rank"], config["max_loras"]) == (16, 2)
    submit(adapter, 1, [20], lora_task_id=7, max_tokens=2)
    submit(adapter, 2, [20], max_tokens=2)
    found = finish(adapter)
    assert tokens(found[1]) == [48, 49]
    assert tokens(found[2]) == [21, 22]
    with pytest.raises(RequestRefused, match="lora_task_id is 2; this model has 1, 7"):
        submit(adapter, 3, [20], lora_task_id=2)


def test_adapters_need_an_engine_that_has_them(adapter: Any) -> None:
    request = GenerationRequest(1, array("i", [5]), Sampling(4, lora_task_id=1))
    with pytest.raises(RequestRefused, match="does not support LoRA adapters"):
        check_request(request, adapter.limits)


def test_a_folder_without_adapters_is_named(module: Any, package: Path, adapters: Path) -> None:
    (adapters / "9").mkdir()
    with pytest.raises(ConfigError, match="loras/9 holds no LoRA adapter"):
        module.load(package, {"lora_dir": str(adapters)})
    (adapters / "9" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="says no rank"):
        module.load(package, {"lora_dir": str(adapters)})


def test_values_that_the_llm_refuses_are_refused_at_once(adapter: Any) -> None:
    with pytest.raises(RequestRefused, match="top_p"):
        submit(adapter, 1, [20], top_p=7.0, temperature=1.0)
    assert not adapter.busy


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {"top_k": 1, "temperature": None, "seed": None}),
        ({"temperature": 0.5, "top_p": 0.9, "seed": 3}, {"top_k": None, "temperature": 0.5, "seed": 3}),
        ({"top_k": 5}, {"top_k": 5, "temperature": 1.0, "top_p": 1.0}),
    ],
)  # fmt: skip
def test_sampling_means_what_the_backend_means(
    module: Any, asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    request = GenerationRequest(1, array("i", [5]), Sampling(max_tokens=4, **asked))
    params = module.sampling_params(request)
    assert {name: getattr(params, name) for name in expected} == expected
    assert (params.detokenize, params.ignore_eos, params.logits_processor) == (False, True, None)
    assert (
        module.sampling_params(GenerationRequest(1, array("i", [5]), Sampling(4, top_k=5))).seed is not None
    )


def test_limits_come_from_the_package_and_the_checkpoint(adapter: Any, module: Any, package: Path) -> None:
    assert adapter.limits.vocab_size == VOCAB
    assert adapter.limits.max_total_len == 100
    assert (adapter.limits.max_input_len, adapter.limits.max_output_len) == (60, 40)
    assert adapter.ready.max_batch_size == 8
    assert module.load(package, {}).limits.max_output_len == 99


def test_the_kv_cache_share_is_the_llms_own(module: Any) -> None:
    assert module.kv_used_fraction({"kvCacheStats": {"maxNumBlocks": 8, "freeNumBlocks": 6}}) == 0.25
    assert module.kv_used_fraction('{"kvCacheStats": {"maxNumBlocks": 4, "freeNumBlocks": 4}}') == 0.0
    assert module.kv_used_fraction({}) == 0.0


def test_a_checkpoint_without_a_vocabulary_size_is_named(module: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="vocabulary size"):
        module.model_config(str(tmp_path))


@pytest.mark.parametrize("version", ["1.0.0", "1.2.1", "1.3.0rc22"])
def test_every_argument_is_one_that_the_llm_has(package: Path, version: str) -> None:
    sizes = {"max_batch_size": 4, "max_input_len": 10, "max_output_len": 20}
    ranks = {"tensor_parallel_size": 2, "pipeline_parallel_size": 1}
    options = EngineOptions.parse(
        {"dtype": "float16", "gpu_memory_fraction": 0.5, "kv_cache_tokens": 64, **sizes, **ranks}
    )
    arguments = llm_arguments(package, options)
    assert set(arguments) <= set(contract(version)["names"])
    check_llm_options({name: value for name, value in arguments.items() if name not in OWN}, version)
    assert arguments["max_seq_len"] == 30
    cache = {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.5, "max_tokens": 64}
    assert arguments["kv_cache_config"] == cache
    assert arguments["trust_remote_code"] is False


def test_own_llm_arguments_win_and_unknown_options_are_named(package: Path) -> None:
    options = EngineOptions.parse({"llm_args": {"max_num_tokens": 512, "enable_iter_perf_stats": False}})
    arguments = llm_arguments(package, options)
    assert (arguments["max_num_tokens"], arguments["enable_iter_perf_stats"]) == (512, False)
    with pytest.raises(ConfigError, match="precision"):
        EngineOptions.parse({"precision": "fast"})


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_package_of_another_kind_is_refused(package: Path, text: str) -> None:
    (package / "llm_args.json").write_text(text)
    with pytest.raises(PackageError, match="--runtime pytorch|does not say what to load"):
        llm_arguments(package, EngineOptions())


def test_a_model_inside_the_package_moves_with_it(package: Path) -> None:
    (package / "quantized").mkdir()
    (package / "llm_args.json").write_text('{"model": "quantized"}')
    assert llm_arguments(package, EngineOptions())["model"] == str(package / "quantized")
    (package / "llm_args.json").write_text('{"model": "org/name"}')
    assert llm_arguments(package, EngineOptions())["model"] == "org/name"


def test_restrictions_travel_to_another_process_and_change_logits_in_place() -> None:
    sampling = Sampling(9, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25,
                        bad_words=((1,), (4, 5)), end_id=0, min_tokens=3)  # fmt: skip
    made = restrictions(sampling, 2)
    assert made is not None
    copied: Restrictions = pickle.loads(pickle.dumps(made))
    logits = np.array([[[8.0, 8.0, 8.0, -8.0, 8.0, 8.0, 8.0]]], dtype=np.float32)
    copied(7, logits, [[2, 3, 6, 4]], None, None)
    inf = -np.inf
    np.testing.assert_allclose(logits[0, 0], [inf, inf, 4.0, -16.0, 3.25, inf, 3.25])
    assert restrictions(Sampling(9, min_tokens=3), 2) is None


def test_banned_logits_stay_banned_under_a_penalty() -> None:
    logits = np.array([[[-np.inf, 1.0]]], dtype=np.float32)
    Restrictions(Sampling(9, repetition_penalty=1.5), 1)(1, logits, [[0]], None, None)
    assert logits[0, 0, 0] == -np.inf
