"""The cpu engine on a tiny random model: sampling parameters, limits, in-flight batching, cancellation."""

from __future__ import annotations

import itertools
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import ConfigError, ResourceError
from worker.openvino import adapter
from worker.openvino.adapter import OpenVinoAdapter
from worker.openvino.options import EngineOptions
from worker.protocol import Finish, GenerationRequest, Refusal, Sampling, Update
from worker.validate import RequestRefused

IDS = itertools.count(1)
PROMPT = [9, 33, 57, 200, 17]
# Keeps the random model from repeating itself.
VARIED: dict[str, Any] = {"repetition_penalty": 1.8}


class Answer:
    """All that the engine reported for one request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.finish = Finish.NONE

    def add(self, update: Update) -> None:
        assert self.finish == Finish.NONE
        self.tokens += update.tokens
        self.log_probs += update.log_probs or []
        self.finish = update.finish


def submit(engine: OpenVinoAdapter, prompt: list[int], **sampling: Any) -> int:
    request_id = next(IDS)
    sampling.setdefault("max_tokens", 12)
    engine.submit(GenerationRequest(request_id, array("i", prompt), Sampling(**sampling)))
    return request_id


def run(engine: OpenVinoAdapter) -> dict[int, Answer]:
    """Step until the engine is idle."""
    answers: dict[int, Answer] = {}
    while engine.busy:
        for result in engine.step():
            assert isinstance(result, Update), result
            answers.setdefault(result.request_id, Answer()).add(result)
    assert engine.active == 0
    return answers


def generate(engine: OpenVinoAdapter, prompt: list[int] = PROMPT, **sampling: Any) -> Answer:
    request_id = submit(engine, prompt, **sampling)
    return run(engine)[request_id]


def test_greedy_answers_do_not_depend_on_the_batch(engine: OpenVinoAdapter) -> None:
    prompts = [[3 + number, *PROMPT[: number % 5]] for number in range(10)]
    alone = [generate(engine, prompt, max_tokens=20).tokens for prompt in prompts]
    ids = [submit(engine, prompt, max_tokens=20) for prompt in prompts]
    answers = run(engine)
    assert [answers[request_id].tokens for request_id in ids] == alone
    assert {answers[request_id].finish for request_id in ids} == {Finish.LENGTH}


def test_a_request_joins_while_another_runs(engine: OpenVinoAdapter) -> None:
    expected = generate(engine, max_tokens=10).tokens
    first = submit(engine, PROMPT[::-1], max_tokens=60)
    for _ in range(5):
        engine.step()
    second = submit(engine, PROMPT, max_tokens=10)
    ended = [result.request_id for result in _steps(engine) if result.finish != Finish.NONE]
    assert ended == [second, first]
    assert generate(engine, max_tokens=10).tokens == expected


def _steps(engine: OpenVinoAdapter) -> list[Update]:
    results = []
    while engine.busy:
        results += [result for result in engine.step() if isinstance(result, Update)]
    return results


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7},
        {"top_k": 1, "top_p": 0.9},
        {"top_k": 0, "top_p": 0.0},
        {"top_k": 5, "temperature": 0.0},
        {"top_p": -1.0},
    ],
)
def test_without_choice_the_engine_is_greedy(engine: OpenVinoAdapter, sampling: dict[str, Any]) -> None:
    assert generate(engine, **sampling).tokens == generate(engine).tokens


def test_a_seed_makes_sampling_repeatable(engine: OpenVinoAdapter) -> None:
    def sampled(**sampling: Any) -> list[int]:
        return generate(engine, top_p=1.0, temperature=1.5, **sampling).tokens

    assert sampled(seed=7) == sampled(seed=7) != sampled(seed=8)
    assert sampled(seed=2**64 - 1) == sampled(seed=2**64 - 1)
    assert sampled() != sampled()


def test_top_k_draws_from_the_best_tokens_only(engine: OpenVinoAdapter) -> None:
    firsts = [
        generate(engine, max_tokens=1, top_k=3, temperature=50.0, seed=seed).tokens[0] for seed in range(40)
    ]
    assert len(set(firsts)) == 3
    assert generate(engine, max_tokens=1).tokens[0] in firsts


def test_penalties_change_the_answer(engine: OpenVinoAdapter) -> None:
    plain = generate(engine, max_tokens=30).tokens
    repeated = len(plain) - len(set(plain))
    penalties = {"repetition_penalty": 3.0, "presence_penalty": 2.0, "frequency_penalty": 2.0}
    for name, value in penalties.items():
        sampling: dict[str, Any] = {name: value}
        tokens = generate(engine, max_tokens=30, **sampling).tokens
        assert tokens != plain
        assert len(tokens) - len(set(tokens)) <= repeated


def test_the_end_id_ends_and_is_left_out(engine: OpenVinoAdapter) -> None:
    plain = generate(engine, **VARIED).tokens
    end_id = plain[4]
    ended = generate(engine, end_id=end_id, **VARIED)
    assert ended.tokens == plain[: plain.index(end_id)]
    assert ended.finish == Finish.END_ID


def test_min_tokens_holds_the_end_id_back(engine: OpenVinoAdapter) -> None:
    plain = generate(engine, **VARIED).tokens
    held = generate(engine, end_id=plain[4], min_tokens=8, **VARIED)
    assert len(held.tokens) >= 8
    assert plain[4] not in held.tokens


def test_a_stop_word_ends_and_is_kept(engine: OpenVinoAdapter) -> None:
    plain = generate(engine, **VARIED).tokens
    stopped = generate(engine, stop_words=((plain[0], 999), tuple(plain[3:6])), **VARIED)
    assert stopped.tokens == plain[:6]
    assert stopped.finish == Finish.STOP_WORDS


def test_bad_words_never_come(engine: OpenVinoAdapter) -> None:
    plain = generate(engine, **VARIED).tokens
    single = generate(engine, bad_words=((plain[2],),), **VARIED).tokens
    assert single[:2] == plain[:2]
    assert plain[2] not in single
    phrase = generate(engine, bad_words=((plain[2], plain[3]),), **VARIED).tokens
    assert phrase[:3] == plain[:3]
    assert (plain[2], plain[3]) not in itertools.pairwise(phrase)


def test_a_bad_phrase_that_never_comes_changes_nothing(engine: OpenVinoAdapter) -> None:
    """The request runs in segments here; the answer must be as from one."""
    plain = generate(engine, max_tokens=20, log_probs=True, **VARIED)
    absent = next(token for token in range(3, 288) if token not in plain.tokens)
    words = tuple((token, absent) for token in plain.tokens[::3])
    cut = generate(engine, max_tokens=20, log_probs=True, bad_words=words, **VARIED)
    assert cut.tokens == plain.tokens
    assert cut.finish == Finish.LENGTH
    np.testing.assert_allclose(cut.log_probs, plain.log_probs, atol=1e-3)


def test_bad_words_go_with_end_id_and_min_tokens(engine: OpenVinoAdapter) -> None:
    plain = generate(engine, **VARIED).tokens
    bad = ((plain[1],),)
    without_end = generate(engine, bad_words=bad, max_tokens=30, **VARIED).tokens
    end_id = without_end[5]
    ended = generate(engine, bad_words=bad, max_tokens=30, end_id=end_id, **VARIED)
    assert ended.tokens == without_end[: without_end.index(end_id)]
    assert ended.finish == Finish.END_ID
    held = generate(engine, bad_words=bad, max_tokens=30, end_id=end_id, min_tokens=9, **VARIED)
    assert end_id not in held.tokens[:9]
    assert len(held.tokens) >= 9


def test_log_probs_are_those_of_the_model(engine: OpenVinoAdapter) -> None:
    answer = generate(engine, log_probs=True, max_tokens=5)
    assert len(answer.log_probs) == 5
    assert all(-6.0 < log_prob < 0.0 for log_prob in answer.log_probs)
    assert generate(engine, max_tokens=5).log_probs == []
    # A prompt token more, a token less to make: the same distributions.
    later = generate(engine, [*PROMPT, answer.tokens[0]], log_probs=True, max_tokens=4)
    np.testing.assert_allclose(later.log_probs, answer.log_probs[1:], atol=1e-3)


def test_cancel_stops_between_two_tokens(engine: OpenVinoAdapter) -> None:
    request_id = submit(engine, PROMPT, max_tokens=5000)
    other = submit(engine, PROMPT[::-1], max_tokens=30)
    for _ in range(4):
        engine.step()
    engine.cancel(request_id)
    engine.cancel(request_id)
    assert engine.active == 1
    results = _steps(engine)
    assert {result.request_id for result in results} == {other}


def test_no_more_than_max_batch_size_run_and_the_rest_follows_in_order(
    package: Path, graph_cache: Path
) -> None:
    engine = adapter.load(package, {"precision": "exact", "kv_cache_tokens": 1024, "max_batch_size": 2})
    ids = [submit(engine, PROMPT, max_tokens=5) for _ in range(5)]
    seen: list[set[int]] = []
    ended: list[int] = []
    while engine.busy:
        updates = [result for result in engine.step() if isinstance(result, Update)]
        seen.append({update.request_id for update in updates})
        ended += [update.request_id for update in updates if update.finish != Finish.NONE]
        assert engine.load().scheduled <= 2
    assert max(map(len, seen)) == 2
    assert ended == ids


def test_cancel_before_the_first_token(engine: OpenVinoAdapter) -> None:
    engine.cancel(submit(engine, PROMPT, max_tokens=5000))
    assert not engine.busy
    request_id = submit(engine, PROMPT * 100, max_tokens=5000)
    assert engine.step() == []
    engine.cancel(request_id)
    assert _steps(engine) == []
    assert generate(engine, max_tokens=3).finish == Finish.LENGTH


def test_more_requests_than_the_cache_holds_all_end(package: Path, graph_cache: Path) -> None:
    engine = adapter.load(package, {"precision": "exact", "kv_cache_tokens": 128, "max_batch_size": 8})
    assert engine.limits.max_total_len == 128
    expected = generate(engine, max_tokens=60).tokens
    ids = [submit(engine, PROMPT, max_tokens=60) for _ in range(8)]
    answers = run(engine)
    assert [answers[request_id].tokens for request_id in ids] == [expected] * 8
    assert engine.load().kv_used_fraction == 0.0


def test_a_request_that_cannot_fit_is_dropped_alone(package: Path, graph_cache: Path) -> None:
    """Validation stops such requests before; the engine must survive one all the same."""
    engine = adapter.load(package, {"precision": "exact", "kv_cache_tokens": 64, "max_batch_size": 4})
    request_id = submit(engine, [5] * 100, max_tokens=5)
    results: list[Any] = []
    for _ in range(5):
        results += engine.step()
    assert [(type(result), result.request_id) for result in results] == [(Refusal, request_id)]
    assert generate(engine, max_tokens=3).finish == Finish.LENGTH


def test_a_value_that_only_the_engine_knows_is_refused(engine: OpenVinoAdapter) -> None:
    with pytest.raises(RequestRefused, match="presence_penalty"):
        submit(engine, PROMPT, presence_penalty=3.0)
    assert engine.active == 0


def test_the_engine_says_what_it_takes(engine: OpenVinoAdapter) -> None:
    assert engine.ready.vocab_size == 288
    assert engine.ready.kv_cache_tokens == engine.limits.max_total_len == 8192
    assert engine.limits.max_input_len == engine.limits.max_output_len == 8191


@pytest.mark.parametrize("precision", ["fast", "int8"])
def test_the_faster_precisions_generate(package: Path, graph_cache: Path, precision: str) -> None:
    engine = adapter.load(package, {"precision": precision, "kv_cache_tokens": 256, "threads": 1})
    assert len(generate(engine, max_tokens=20).tokens) == 20


def test_graphs_are_built_once(package: Path, engine: OpenVinoAdapter, graph_cache: Path) -> None:
    def built() -> set[Path]:
        return {path for path in graph_cache.rglob("openvino_model.xml") if "exact-" in str(path)}

    before = {path: path.stat().st_mtime_ns for path in built()}
    adapter.load(package, {"precision": "exact", "kv_cache_tokens": 64})
    assert {path: path.stat().st_mtime_ns for path in built()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precison": "exact"}, "cpu engine has no option 'precison'"),
        ({"precision": "float8"}, "precision is 'float8'"),
        ({"kv_cache_tokens": 0}, "kv_cache_tokens is 0"),
        ({"threads": True}, "threads is True"),
        ({"max_batch_size": "8"}, "max_batch_size is '8'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EngineOptions.parse(options)


def test_a_cache_beyond_memory_is_refused(package: Path, graph_cache: Path) -> None:
    with pytest.raises(ResourceError, match="does not fit"):
        adapter.load(package, {"precision": "exact", "kv_cache_tokens": 1 << 40})
