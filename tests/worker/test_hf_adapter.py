"""The cuda-hf adapter's own work, with an engine that fails on demand; test_hf_engine has transformers."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import CheckpointError, ConfigError, EngineError
from worker.checkpoint import checkpoint_folder
from worker.hf.adapter import HfAdapter
from worker.hf.engine import Computed
from worker.hf.options import EngineOptions
from worker.hf.rules import TokenRules
from worker.protocol import Finish, GenerationRequest, Ready, Refusal, Sampling, Update
from worker.validate import Limits


class Scripted:
    """Does what a test says at each step: results, or an exception."""

    def __init__(self) -> None:
        self.script: list[list[Computed] | Exception] = []
        self.added: dict[str, dict[str, Any]] = {}
        self.cancelled: list[str] = []
        self.restarts: list[str] = []
        self.cancelling = False

    def add(
        self, name: str, prompt: Sequence[int], max_tokens: int, end_id: int | None, rules: TokenRules
    ) -> None:
        self.added[name] = {"prompt": list(prompt), "max_tokens": max_tokens, "end_id": end_id}

    def cancel(self, name: str) -> None:
        self.cancelled.append(name)
        self.cancelling = True

    def step(self) -> list[Computed]:
        self.cancelling = False
        found = self.script.pop(0) if self.script else []
        if isinstance(found, Exception):
            raise found
        return found

    def restart(self, error: Exception) -> None:
        self.restarts.append(str(error))

    def kv_used_fraction(self) -> float:
        return 0.25


@pytest.fixture
def engine() -> Scripted:
    return Scripted()


@pytest.fixture
def adapter(engine: Scripted) -> HfAdapter:
    return HfAdapter(engine, Ready("cuda-hf", 100, 8, 64, 64, 4096, 32), Limits(100, 64, 64, 128))


def submit(adapter: HfAdapter, number: int = 7, **sampling: Any) -> None:
    settings = Sampling(**{"max_tokens": 8, "end_id": 2, **sampling})
    adapter.submit(GenerationRequest(number, array("i", [5, 6]), settings))


def only(adapter: HfAdapter) -> Update:
    [update] = adapter.step()
    assert isinstance(update, Update)
    return update


def test_the_prompt_is_read_first_and_the_end_id_is_left_out(adapter: HfAdapter, engine: Scripted) -> None:
    submit(adapter)
    engine.script = [[Computed("7")], [Computed("7", 10)], [Computed("7", 2, ended=True)]]
    assert adapter.step() == []
    first, last = only(adapter), only(adapter)
    assert (list(first.tokens), first.finish) == ([10], Finish.NONE)
    assert (list(last.tokens), last.finish) == ([], Finish.END_ID)
    assert 0 < last.scheduled_ns == first.scheduled_ns
    assert not adapter.busy
    assert engine.added["7"] == {"prompt": [5, 6], "max_tokens": 8, "end_id": 2}


def test_a_stop_word_ends_the_request_in_the_engine_too(adapter: HfAdapter, engine: Scripted) -> None:
    submit(adapter, stop_words=((20, 21),))
    engine.script = [[Computed("7", 20)], [Computed("7", 21)]]
    only(adapter)
    assert only(adapter).finish == Finish.STOP_WORDS
    assert engine.cancelled == ["7"]
    assert adapter.busy, "one more step frees what it held"
    assert adapter.step() == []
    assert not adapter.busy


def test_the_limit_is_told_as_length(adapter: HfAdapter, engine: Scripted) -> None:
    submit(adapter)
    engine.script = [[Computed("7", 9, ended=True)]]
    assert only(adapter).finish == Finish.LENGTH


def test_a_cancelled_request_is_heard_of_no_more(adapter: HfAdapter, engine: Scripted) -> None:
    submit(adapter)
    adapter.cancel(7)
    adapter.cancel(99)
    engine.script = [[Computed("7", 9)]]
    assert adapter.step() == []
    assert engine.cancelled == ["7"]
    assert (adapter.active, adapter.load().kv_used_fraction) == (0, 0.0)


def test_log_probs_only_for_who_asked(adapter: HfAdapter, engine: Scripted) -> None:
    submit(adapter, 7, log_probs=True)
    submit(adapter, 8)
    engine.script = [[Computed("7", 9, -0.5), Computed("8", 9)]]
    first, second = adapter.step()
    assert isinstance(first, Update)
    assert isinstance(second, Update)
    assert first.log_probs is not None
    assert list(first.log_probs) == [-0.5]
    assert second.log_probs is None
    assert (adapter.load().scheduled, adapter.load().kv_used_fraction) == (2, 0.25)


def test_a_failed_step_refuses_its_requests_and_goes_on(adapter: HfAdapter, engine: Scripted) -> None:
    submit(adapter, 7)
    submit(adapter, 8)
    engine.script = [RuntimeError("CUDA out of memory"), [Computed("9", 4, ended=True)]]
    refusals = adapter.step()
    assert [one.request_id for one in refusals if isinstance(one, Refusal)] == [7, 8]
    assert "CUDA out of memory" in str(refusals[0])
    assert engine.restarts == ["CUDA out of memory"]
    submit(adapter, 9)
    assert only(adapter).finish == Finish.LENGTH


def test_an_engine_that_fails_again_and_again_is_given_up(adapter: HfAdapter, engine: Scripted) -> None:
    engine.script = [RuntimeError("device-side assert")] * 3
    for number in (1, 2):
        submit(adapter, number)
        adapter.step()
    submit(adapter, 3)
    with pytest.raises(EngineError, match="fails at every step"):
        adapter.step()


def test_rules_of_a_request_follow_its_tokens() -> None:
    sampling = Sampling(9, min_tokens=2, end_id=3, bad_words=((4, 5),), temperature=0.5, top_p=0.9, seed=1)
    rules = TokenRules(GenerationRequest(1, array("i", [8]), sampling))
    assert rules.banned() == {3}
    assert not rules.plain
    rules.append(4)
    assert rules.banned() == {3, 5}
    rules.append(6)
    assert rules.banned() == frozenset()
    again = TokenRules(GenerationRequest(2, array("i", [8]), sampling))
    assert [rules.uniform() for _ in range(3)] == [again.uniform() for _ in range(3)]
    assert TokenRules(GenerationRequest(1, array("i", [8]), Sampling(9))).plain


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "fast"}, "no option 'precision'"),
        ({"tensor_parallel_size": 2}, "one GPU"),
        ({"attention": "magic"}, "attention is 'magic'"),
        ({"gpu_memory_fraction": 1.5}, "gpu_memory_fraction is 1.5"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        EngineOptions.parse(options)


def test_a_converted_checkpoint_alone_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="transformers loads the original"):
        checkpoint_folder(tmp_path, None, "transformers")
