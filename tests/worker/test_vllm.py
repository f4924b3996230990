"""The vLLM adapter's own work. vLLM itself is a stand-in here, with the names that the adapter uses of it
(checked against vLLM 0.22.1 on a GPU by benchmarks/gpu_correctness.py)."""

from __future__ import annotations

import enum
import importlib
import json
import queue
import sys
import types
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import CheckpointError, ConfigError, EngineError
from worker.protocol import Finish, GenerationRequest, Ready, Refusal, Sampling, Update
from worker.validate import Limits, RequestRefused
from worker.vllm.options import EngineOptions, checkpoint_folder, engine_arguments

GUIDE_END = 3


class FinishReason(enum.IntEnum):
    STOP = 0
    LENGTH = 1
    ABORT = 2
    ERROR = 3


class Record(SimpleNamespace):
    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)


class Core:
    """Takes what the adapter sends; a test puts what comes back."""

    def __init__(self) -> None:
        self.outputs_queue: queue.Queue[Any] = queue.Queue()
        self.added: list[Any] = []
        self.aborted: list[str] = []

    def add_request(self, request: Any) -> None:
        self.added.append(request)

    def abort_requests(self, names: list[str]) -> None:
        self.aborted += names

    def bring(self, *outputs: Any, kv_cache_usage: float = 0.5) -> None:
        stats = Record(kv_cache_usage=kv_cache_usage)
        self.outputs_queue.put(Record(outputs=list(outputs), scheduler_stats=stats))


def output(name: str, tokens: list[int], reason: FinishReason | None = None, **fields: Any) -> Any:
    known = {"new_logprobs": None, "stop_reason": None, **fields}
    return Record(request_id=name, new_token_ids=tokens, finish_reason=reason, **known)


def refuse_bad_guide(params: Any) -> None:
    if getattr(params.structured_outputs, "regex", None) == "((":
        raise ValueError("Failed to transform regex into a grammar")


class Tokenizers:
    @staticmethod
    def from_pretrained(folder: Path, trust_remote_code: bool) -> Any:
        assert trust_remote_code is False
        if not (folder / "tokenizer.json").is_file():
            raise OSError("no tokenizer")
        return Record(eos_token_id=GUIDE_END)


@pytest.fixture
def adapter_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    names: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": Record},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA="delta"),
            "StructuredOutputsParams": Record,
        },
        "vllm.v1.structured_output": {},
        "vllm.v1.structured_output.backend_xgrammar": {"validate_xgrammar_grammar": refuse_bad_guide},
        "transformers": {"AutoTokenizer": Tokenizers},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": Record},
        "vllm.v1": {},
        "vllm.v1.engine": {"EngineCoreRequest": Record, "FinishReason": FinishReason},
        "vllm.v1.engine.core_client": {"EngineCoreClient": Record},
        "vllm.v1.executor": {"Executor": Record},
    }
    for name, members in names.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("worker.vllm.adapter", "worker.vllm.sampling"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("worker.vllm.adapter")
    for name in ("worker.vllm.adapter", "worker.vllm.sampling"):
        sys.modules.pop(name, None)


@pytest.fixture
def engine(adapter_module: Any) -> tuple[Any, Core]:
    core = Core()
    ready = Ready("cuda-vllm", 1000, 8, 64, 64, 4096, 16)
    return adapter_module.VllmAdapter(core, ready, Limits(1000, 64, 64, 128), GUIDE_END), core


def submit(adapter: Any, request_id: int = 7, **sampling: Any) -> None:
    settings = Sampling(**{"max_tokens": 8, "end_id": 2, **sampling})
    adapter.submit(GenerationRequest(request_id, array("i", [5, 6]), settings))


def test_tokens_pass_and_the_end_id_does_not(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter)
    core.bring(output("7", [10, 11]))
    core.bring(output("7", [12, 2], FinishReason.STOP))
    first, last = adapter.step()[0], adapter.step()[0]
    assert (list(first.tokens), first.finish) == ([10, 11], Finish.NONE)
    assert (list(last.tokens), last.finish) == ([12], Finish.END_ID)
    assert not adapter.busy
    assert core.aborted == []


def test_a_stop_word_ends_the_request_in_the_core_too(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter, stop_words=((20, 21),))
    core.bring(output("7", [20]))
    core.bring(output("7", [21, 22]))
    adapter.step()
    update = adapter.step()[0]
    assert (list(update.tokens), update.finish) == ([21], Finish.STOP_WORDS)
    assert core.aborted == ["7"]


def test_the_limit_is_told_as_length(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter)
    core.bring(output("7", [9], FinishReason.LENGTH))
    assert adapter.step()[0].finish == Finish.LENGTH


def test_a_cancelled_request_is_aborted_and_its_late_tokens_are_dropped(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter)
    adapter.cancel(7)
    adapter.cancel(99)
    core.bring(output("7", [10]))
    assert core.aborted == ["7"]
    assert adapter.step() == []
    assert adapter.active == 0


def test_a_request_that_vllm_fails_is_refused_alone(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter, 7)
    submit(adapter, 8)
    core.bring(output("7", [], FinishReason.ERROR), output("8", [10]))
    refusal, update = adapter.step()
    assert isinstance(refusal, Refusal)
    assert isinstance(update, Update)
    assert adapter.active == 1


def test_a_dead_core_is_an_engine_error(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter)
    core.outputs_queue.put(RuntimeError("CUDA out of memory"))
    with pytest.raises(EngineError, match="CUDA out of memory"):
        adapter.step()


def test_a_step_without_news_returns_so_that_messages_are_taken(engine: tuple[Any, Core]) -> None:
    assert engine[0].step() == []


def test_log_probs_are_those_of_the_chosen_tokens(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter, log_probs=True)
    core.bring(output("7", [10, 11], new_logprobs=Record(logprobs=[[-0.5, -1.0], [-0.25, -2.0]])))
    assert list(adapter.step()[0].log_probs) == [-0.5, -0.25]
    assert core.added[0].sampling_params.logprobs == 0


@pytest.mark.parametrize(
    ("asked", "temperature", "top_p"),
    [
        ({}, 0.0, 1.0),
        ({"temperature": 0.7, "top_p": 0.9}, 0.7, 0.9),
        ({"top_k": 1, "temperature": 0.7}, 0.0, 1.0),
    ],
)
def test_sampling_means_what_the_backend_means(
    engine: tuple[Any, Core], asked: dict[str, Any], temperature: float, top_p: float
) -> None:
    adapter, core = engine
    submit(adapter, **asked)
    params = core.added[0].sampling_params
    assert (params.temperature, params.top_p) == (temperature, top_p)
    assert params.stop_token_ids == [2]
    assert core.added[0].prompt_token_ids == [5, 6]


@pytest.mark.parametrize(
    ("guide_type", "guide", "field", "value"),
    [
        ("json", None, "json_object", True),
        ("json_schema", "{}", "json", "{}"),
        ("regex", "a+", "regex", "a+"),
        ("ebnf_grammar", 'root ::= "a"', "grammar", 'root ::= "a"'),
    ],
)
def test_a_guide_is_vllms_and_ends_with_its_end(
    engine: tuple[Any, Core], guide_type: str, guide: str | None, field: str, value: Any
) -> None:
    adapter, core = engine
    submit(adapter, guide_type=guide_type, guide=guide)
    params = core.added[0].sampling_params
    assert getattr(params.structured_outputs, field) == value
    assert params.structured_outputs._backend == "xgrammar"
    assert params.stop_token_ids == [2, GUIDE_END]
    core.bring(output("7", [10, GUIDE_END], FinishReason.STOP))
    update = adapter.step()[0]
    assert (list(update.tokens), update.finish) == ([10], Finish.END_ID)


def test_a_bad_guide_is_refused_before_the_core_sees_it(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    with pytest.raises(RequestRefused, match="regex"):
        submit(adapter, guide_type="regex", guide="((")
    assert (core.added, adapter.active) == ([], 0)


def test_without_guide_or_bias_vllm_gets_none(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter)
    params = core.added[0].sampling_params
    assert (params.structured_outputs, params.logit_bias) == (None, None)


def test_a_bias_is_passed_on_in_finite_numbers(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter, token_bias=((5, -1.5), (6, float("-inf"))))
    assert core.added[0].sampling_params.logit_bias == {5: -1.5, 6: -1e9}


def test_vllm_loads_a_tokenizer_only_where_there_is_one(adapter_module: Any, tmp_path: Path) -> None:
    assert adapter_module._guide_end(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert adapter_module._guide_end(tmp_path) == GUIDE_END
    assert engine_arguments(EngineOptions(), tmp_path, tokenizer=True)["skip_tokenizer_init"] is False


def test_the_kv_cache_share_is_vllms_own(engine: tuple[Any, Core]) -> None:
    adapter, core = engine
    submit(adapter)
    core.bring(output("7", [10]), kv_cache_usage=0.125)
    adapter.step()
    assert adapter.load().kv_used_fraction == 0.125
    adapter.cancel(7)
    assert adapter.load().kv_used_fraction == 0.0


def test_options_become_vllms_arguments() -> None:
    options = EngineOptions.parse(
        {"max_input_len": 100, "max_output_len": 28, "max_batch_size": 4, "engine_args": {"seed": 3}}
    )
    arguments = engine_arguments(options, Path("/checkpoint"), tokenizer=False)
    assert arguments["max_model_len"] == 128
    assert arguments["max_num_seqs"] == 4
    assert arguments["seed"] == 3
    assert arguments["trust_remote_code"] is False


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match="precision"):
        EngineOptions.parse({"precision": "fast"})


def test_the_checkpoint_is_found_through_the_package(tmp_path: Path) -> None:
    source, package = tmp_path / "hf", tmp_path / "package"
    source.mkdir()
    package.mkdir()
    (source / "config.json").write_text("{}")
    (package / "llm_args.json").write_text(json.dumps({"model": str(source)}))
    assert checkpoint_folder(package, EngineOptions()) == source
    assert checkpoint_folder(source, EngineOptions()) == source
    (source / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no Hugging Face checkpoint"):
        checkpoint_folder(package, EngineOptions())
