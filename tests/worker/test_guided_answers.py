"""Guided decoding and logit bias on the real engine, with a random model that says bytes."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from array import array
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.worker.byte_tokenizer import END_ID, byte_tokenizer
from worker.openvino.adapter import OpenVinoAdapter
from worker.openvino.guides import GuideChecker
from worker.protocol import GUIDED_DECODING, LOGIT_BIAS, Finish, GenerationRequest, Refusal, Sampling, Update
from worker.validate import RequestRefused

IDS = itertools.count(1_000_000)
TOKENIZER = byte_tokenizer()
PROMPT = TOKENIZER.encode("Anna is 33 years old.").ids
SAMPLED: dict[str, Any] = {"temperature": 1.5, "top_p": 1.0}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,6}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


class Answers:
    """What the engine said to each request."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, Finish] = {}
        self.refused: dict[int, Refusal] = {}

    def text(self, request_id: int) -> str:
        text: str = TOKENIZER.decode(self.tokens[request_id], skip_special_tokens=False)
        return text


def submit(engine: OpenVinoAdapter, prompt: list[int] = PROMPT, **sampling: Any) -> int:
    request_id = next(IDS)
    settings = Sampling(**{"max_tokens": 120, "end_id": END_ID, **sampling})
    engine.submit(GenerationRequest(request_id, array("i", prompt), settings))
    return request_id


def run(engine: OpenVinoAdapter) -> Answers:
    """Step until the engine is idle."""
    answers = Answers()
    while engine.busy:
        for result in engine.step():
            if isinstance(result, Update):
                answers.tokens.setdefault(result.request_id, []).extend(result.tokens)
                answers.finish[result.request_id] = result.finish
            else:
                answers.refused[result.request_id] = result
    assert engine.active == 0
    return answers


def answer(engine: OpenVinoAdapter, **sampling: Any) -> str:
    """The text of an answer that ends by itself."""
    request_id = submit(engine, **sampling)
    answers = run(engine)
    assert not answers.refused
    assert answers.finish[request_id] == Finish.END_ID
    return answers.text(request_id)


def fits_person(text: str) -> bool:
    person = json.loads(text)
    assert list(person) == ["name", "age", "tags"]
    assert re.fullmatch("[a-z]{1,6}", person["name"])
    assert type(person["age"]) is int and 0 <= person["age"] <= 120
    assert len(person["tags"]) <= 2 and set(person["tags"]) <= {"a", "b"}
    return True


def test_the_engine_says_that_it_can(engine: OpenVinoAdapter) -> None:
    assert engine.ready.features == engine.limits.features
    assert set(engine.ready.features) == {GUIDED_DECODING, LOGIT_BIAS}


def test_answers_to_a_schema_fit_it(engine: OpenVinoAdapter) -> None:
    guide: dict[str, Any] = {"guide_type": "json_schema", "guide": json.dumps(PERSON)}
    ids = [submit(engine, **guide, **SAMPLED, seed=seed, max_tokens=400) for seed in range(12)]
    answers = run(engine)
    assert not answers.refused
    assert {answers.finish[request_id] for request_id in ids} == {Finish.END_ID}
    assert all(fits_person(answers.text(request_id)) for request_id in ids)


@pytest.mark.parametrize(
    "sampling", [{}, {**SAMPLED, "seed": 3}, {"log_probs": True}, {"top_k": 4, "seed": 1}]
)
def test_an_answer_matches_its_regex(engine: OpenVinoAdapter, sampling: dict[str, Any]) -> None:
    pattern = "(yes|no), [0-9]{2,4}\\."
    assert re.fullmatch(pattern, answer(engine, guide_type="regex", guide=pattern, **sampling))


def test_an_answer_follows_its_grammar(engine: OpenVinoAdapter) -> None:
    grammar = 'root ::= pair ("," pair){2}\npair ::= "<" [a-zé] ">"'
    text = answer(engine, guide_type="ebnf_grammar", guide=grammar, **SAMPLED, seed=2)
    assert re.fullmatch("<[a-zé]>(,<[a-zé]>){2}", text)


def test_any_json_object(engine: OpenVinoAdapter) -> None:
    ids = [submit(engine, guide_type="json", **SAMPLED, seed=seed, max_tokens=400) for seed in range(10)]
    answers = run(engine)
    whole = [request_id for request_id in ids if answers.finish[request_id] == Finish.END_ID]
    assert whole
    assert all(isinstance(json.loads(answers.text(request_id)), dict) for request_id in whole)


def test_an_answer_of_nothing_is_possible(engine: OpenVinoAdapter) -> None:
    assert answer(engine, guide_type="regex", guide="(a{0})") == ""


def test_a_stop_word_ends_a_guided_answer(engine: OpenVinoAdapter) -> None:
    stop = tuple(TOKENIZER.encode("ab").ids)
    request_id = submit(engine, guide_type="regex", guide="(ab)+c", stop_words=(stop,))
    answers = run(engine)
    assert answers.finish[request_id] == Finish.STOP_WORDS
    assert answers.text(request_id) == "ab"


def test_neighbours_are_not_disturbed(engine: OpenVinoAdapter) -> None:
    def plain() -> list[int]:
        return [
            submit(engine, max_tokens=40, end_id=None, repetition_penalty=penalty) for penalty in (1.1, 1.8)
        ]

    alone_ids = plain()
    alone = run(engine)
    before, after = plain(), []
    guided = submit(engine, guide_type="json_schema", guide=json.dumps(PERSON), **SAMPLED, seed=1)
    forced = submit(engine, token_bias=((5, 100.0),), max_tokens=10)
    broken = submit(engine, guide_type="regex", guide="((")
    after = plain()
    together = run(engine)
    expected = [alone.tokens[request_id] for request_id in alone_ids]
    assert [together.tokens[request_id] for request_id in before] == expected
    assert [together.tokens[request_id] for request_id in after] == expected
    assert together.tokens[forced] == [5] * 10
    assert guided in together.finish
    assert list(together.refused) == [broken]


@pytest.mark.parametrize(
    ("guide_type", "guide", "words"),
    [
        ("json_schema", '{"type": "string", "pattern": "(("}', "Expect )"),
        ("regex", "((", "parenthesis is not closed"),
        ("regex", "[z-a]", "lower bound"),
        ("ebnf_grammar", "root := x", "line 1"),
        ("ebnf_grammar", 'start ::= "x"', '"root" is not found'),
        ("ebnf_grammar", "root ::= root", "no token of this model"),
    ],
)
def test_a_bad_guide_is_refused_and_the_engine_goes_on(
    engine: OpenVinoAdapter, guide_type: str, guide: str, words: str
) -> None:
    request_id = submit(engine, guide_type=guide_type, guide=guide)
    refusal = run(engine).refused[request_id]
    assert refusal.code == "guide_invalid"
    assert words in refusal.message
    assert "/" not in refusal.message.split(":")[1]  # no path of the compiler's sources
    assert answer(engine, guide_type="regex", guide="ok") == "ok"


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        ("(" * 20000 + "a" + ")" * 20000, "too much"),
        pytest.param("(" + "|".join(["[a-z]{1,99}"] * 99) + "){1,99}", "too long", marks=pytest.mark.slow),
    ],
)
def test_a_guide_that_ends_its_compiler_is_refused_alone(
    engine: OpenVinoAdapter, guide: str, words: str
) -> None:
    """Validation stops the first kind before; the engine must survive it all the same."""
    lost = submit(engine, guide_type="regex", guide=guide)
    good = submit(engine, guide_type="regex", guide="fine")
    answers = run(engine)
    assert answers.refused[lost].code == "guide_too_large"
    assert words in answers.refused[lost].message
    assert answers.text(good) == "fine"


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("kill -PROF $$", "guide_too_large", "too long"),
        ("kill -ALRM $$", "guide_too_large", "too long"),
        ("kill -SEGV $$", "guide_too_large", "too much"),
        ("exit 1", "guide_check_failed", "log"),
    ],
)
def test_a_lost_check_is_told_by_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, code: str, words: str
) -> None:
    checker = GuideChecker(tmp_path)
    lost = partial(subprocess.Popen, ["sh", "-c", f"read line; {end}"], stdin=PIPE, stdout=PIPE)
    monkeypatch.setattr(checker, "_start", lost)
    for _ in range(2):  # the second finds a process of its own
        problem = checker.check(Sampling(max_tokens=1, guide_type="json")).result(20)
        assert problem is not None
        assert problem.code == code
        assert words in problem.message
    checker.close()


def test_a_guide_that_leads_nowhere_ends_in_a_refusal(engine: OpenVinoAdapter) -> None:
    request_id = submit(
        engine, guide_type="ebnf_grammar", guide='root ::= "a"{20} nowhere\nnowhere ::= nowhere'
    )
    answers = run(engine)
    assert answers.refused[request_id].code == "guide_dead_end"
    assert answers.text(request_id) == "a" * 20


def test_a_request_can_be_cancelled_while_its_guide_is_tried(engine: OpenVinoAdapter) -> None:
    request_id = submit(engine, guide_type="regex", guide="[a-z]{3}")
    assert engine.active == 1
    engine.cancel(request_id)
    assert not engine.busy


@pytest.mark.parametrize(
    "beside", [{"bad_words": ((5,),)}, {"token_bias": ((5, -100.0),)}, {"min_tokens": 3}]
)
def test_a_guide_goes_with_no_other_ban(engine: OpenVinoAdapter, beside: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused, match="does not go together"):
        submit(engine, guide_type="regex", guide="a", **beside)
    assert engine.active == 0


def plain_tokens(engine: OpenVinoAdapter, **sampling: Any) -> list[int]:
    request_id = submit(engine, **{"max_tokens": 12, "end_id": None, "repetition_penalty": 1.8, **sampling})
    return run(engine).tokens[request_id]


def test_a_bias_forbids_tokens(engine: OpenVinoAdapter) -> None:
    free = plain_tokens(engine)
    unwanted = tuple((token, -100.0) for token in free[2:4])
    tokens = plain_tokens(engine, token_bias=unwanted)
    assert tokens[:2] == free[:2]
    assert not set(tokens) & set(free[2:4])


@pytest.mark.parametrize("sampling", [{}, {"temperature": 50.0, "top_p": 1.0, "seed": 4}])
def test_a_bias_lets_only_some_tokens_come(engine: OpenVinoAdapter, sampling: dict[str, Any]) -> None:
    tokens = plain_tokens(engine, token_bias=((40, 100.0), (41, 100.0), (42, -100.0)), **sampling)
    assert len(tokens) == 12
    assert set(tokens) <= {40, 41}


def test_the_end_id_may_be_the_one_that_comes(engine: OpenVinoAdapter) -> None:
    assert answer(engine, token_bias=((END_ID, 100.0),)) == ""
    request_id = submit(engine, token_bias=((END_ID, 100.0), (40, 100.0)), min_tokens=3, max_tokens=9)
    assert run(engine).tokens[request_id][:3] == [40] * 3


@pytest.mark.parametrize("bias", [((5, 1.5),), ((5, -99.0),), ((5, 100.0), (6, 101.0))])
def test_a_bias_that_only_shifts_the_odds_is_refused(
    engine: OpenVinoAdapter, bias: tuple[tuple[int, float], ...]
) -> None:
    with pytest.raises(RequestRefused, match="embedding_bias") as refused:
        submit(engine, token_bias=bias)
    assert refused.value.code == "bias_not_decisive"
