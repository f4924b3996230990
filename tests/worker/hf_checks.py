"""The cuda-hf engine on real PyTorch and transformers, on the CPU in float32, against transformers' generate.

    python -m tests.worker.hf_checks [NAME ...]

prints a line `CHECK {"name": ..., "problem": ...}` for each check. Run it with a Python that has PyTorch,
transformers and psutil; tests/worker/test_hf_engine.py does so with the one that EW_TORCH_PYTHON names.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests import tiny
from worker.hf.adapter import HfAdapter
from worker.hf.load import load
from worker.hf.penalties import PenaltyTable
from worker.hf.rules import TokenRules
from worker.hf.sampling import choose
from worker.protocol import Finish, GenerationRequest, Refusal, Sampling, Update
from worker.validate import RequestRefused, check_request

DATA = Path(__file__).parent / "data" / "expected_tokens.json"
OPTIONS = {"dtype": "float32", "max_batch_size": 16, "max_batch_tokens": 32, "kv_cache_tokens": 2048}
# Baichuan, ChatGLM, Qwen and InternLM2 need code of the checkpoint's own.
FAMILIES = [name for name, config in tiny.CONFIGS.items() if config["model_type"] not in
            ("baichuan", "chatglm", "qwen", "internlm2")]  # fmt: skip
CHECKS = (
    "greedy_tokens_of_every_family",
    "penalties_min_tokens_and_bad_words_as_in_generate",
    "presence_and_frequency_lower_what_came",
    "a_bias_is_added_to_the_logits",
    "log_probs_are_the_models",
    "a_seed_gives_its_tokens_in_any_batch",
    "a_full_cache_changes_no_token",
    "cancelling_frees_the_cache",
    "stop_words_and_end_ids",
    "a_failed_step_ends_its_requests_only",
    "what_cannot_run_is_refused_before_the_engine_sees_it",
    "draws_follow_the_distribution",
    "prompts_are_read_beside_running_answers",
)
PROMPT = [9, 33, 57, 200, 17]


def engine(name: str = "qwen3", **options: Any) -> tuple[HfAdapter, Path]:
    folder = Path(tempfile.mkdtemp(prefix="ew-hf-"))
    checkpoint = tiny.write_hf(name, folder)
    return load(checkpoint, {**OPTIONS, **options}), checkpoint


def submit(adapter: HfAdapter, number: int, prompt: list[int], **sampling: Any) -> None:
    request = GenerationRequest(number, array("i", prompt), Sampling(**{"max_tokens": 24, **sampling}))
    check_request(request, adapter.limits)
    adapter.submit(request)


def finish(adapter: HfAdapter) -> dict[int, list[Update | Refusal]]:
    """Step until all is done; what came, by request."""
    results: dict[int, list[Update | Refusal]] = {}
    while adapter.busy:
        for result in adapter.step():
            results.setdefault(result.request_id, []).append(result)
    return results


def tokens(results: list[Update | Refusal]) -> list[int]:
    return [token for result in results if isinstance(result, Update) for token in result.tokens]


def answer(adapter: HfAdapter, prompt: list[int] = PROMPT, **sampling: Any) -> list[int]:
    submit(adapter, 1, prompt, **sampling)
    return tokens(finish(adapter)[1])


def generated(checkpoint: Path, prompt: list[int] = PROMPT, **options: Any) -> list[int]:
    """transformers' own answer."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.tensor([prompt])
    plain = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    made: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), **{**plain, **options})[
        0
    ].tolist()
    return made[len(prompt) :]


def check_greedy_tokens_of_every_family() -> None:
    expected = json.loads(DATA.read_text(encoding="utf-8"))
    for name in FAMILIES:
        adapter, _ = engine(name)
        for number, prompt in enumerate(tiny.prompts(name)):
            submit(adapter, number, prompt, max_tokens=tiny.NEW_TOKENS)
        found = finish(adapter)
        assert [tokens(found[number]) for number in sorted(found)] == expected[name], name


def check_penalties_min_tokens_and_bad_words_as_in_generate() -> None:
    adapter, checkpoint = engine()
    plain = generated(checkpoint)
    repeated = generated(checkpoint, repetition_penalty=1.8)
    assert repeated != plain
    assert answer(adapter, repetition_penalty=1.8) == repeated
    words = [[plain[0]], plain[3:5]]
    banned = generated(checkpoint, bad_words_ids=words)
    assert answer(adapter, bad_words=tuple(map(tuple, words))) == banned
    late = generated(checkpoint, eos_token_id=plain[2], min_new_tokens=6)
    ended = answer(adapter, end_id=plain[2], min_tokens=6)
    assert ended == [token for token in late if token != plain[2] or len(late) == 24][: len(ended)]
    assert len(ended) >= 6


def check_presence_and_frequency_lower_what_came() -> None:
    adapter, checkpoint = engine()
    plain = generated(checkpoint)
    strong = answer(adapter, presence_penalty=2.0, frequency_penalty=2.0)
    assert len(set(strong)) > len(set(plain))


def check_a_bias_is_added_to_the_logits() -> None:
    adapter, checkpoint = engine()
    plain = generated(checkpoint)
    assert answer(adapter, token_bias=((plain[0], -1e9),))[0] != plain[0]
    assert set(answer(adapter, token_bias=((5, 1e9), (6, float("-inf"))))) == {5}
    assert answer(adapter, token_bias=((plain[0], 1e-6),)) == plain


def check_log_probs_are_the_models() -> None:
    adapter, checkpoint = engine()
    submit(adapter, 1, PROMPT, log_probs=True, temperature=0.9, top_p=0.95, seed=3)
    updates = [one for one in finish(adapter)[1] if isinstance(one, Update)]
    found = [value for one in updates if one.log_probs is not None for value in one.log_probs]
    made = tokens(list(updates))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + made])).logits[0, len(PROMPT) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(made).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-4, rtol=1e-4)


def check_a_seed_gives_its_tokens_in_any_batch() -> None:
    adapter, _ = engine()
    drawn: dict[str, Any] = {"temperature": 1.0, "top_p": 0.98}
    alone = answer(adapter, seed=7, **drawn)
    for number in range(2, 9):
        submit(adapter, number, [number, 5, 8], **({} if number % 2 else {"seed": number, **drawn}))
    submit(adapter, 1, PROMPT, seed=7, **drawn)
    assert tokens(finish(adapter)[1]) == alone
    assert answer(adapter, seed=8, **drawn) != alone
    assert answer(adapter, **drawn) != answer(adapter, **drawn)


def check_a_full_cache_changes_no_token() -> None:
    adapter, _ = engine(kv_cache_tokens=192)
    prompts = [[number + 3, 40, 41, 42, number] for number in range(12)]
    drawn: dict[str, Any] = {"max_tokens": 60, "temperature": 1.0, "top_k": 50, "log_probs": True}
    alone = [answer(adapter, prompt, seed=place, **drawn) for place, prompt in enumerate(prompts)]
    for place, prompt in enumerate(prompts):
        submit(adapter, place, prompt, seed=place, **drawn)
    found = finish(adapter)
    assert [tokens(found[place]) for place in range(12)] == alone


def check_cancelling_frees_the_cache() -> None:
    adapter, _ = engine()
    for number in range(8):
        submit(adapter, number, PROMPT, max_tokens=100)
    for _ in range(6):
        adapter.step()
    assert adapter.load().kv_used_fraction > 0
    for number in range(8):
        adapter.cancel(number)
    assert adapter.busy
    assert finish(adapter) == {}
    assert adapter._engine.kv_used_fraction() == 0.0
    assert (adapter.active, adapter.load().scheduled) == (0, 0)


def check_stop_words_and_end_ids() -> None:
    adapter, checkpoint = engine()
    plain = generated(checkpoint)
    submit(adapter, 1, PROMPT, stop_words=(tuple(plain[2:4]),))
    submit(adapter, 2, PROMPT, end_id=plain[2])
    submit(adapter, 3, PROMPT, max_tokens=1)
    found = finish(adapter)
    assert tokens(found[1]) == plain[:4]
    assert tokens(found[2]) == plain[: plain.index(plain[2])]
    ends = [results[-1].finish for _, results in sorted(found.items()) if isinstance(results[-1], Update)]
    assert ends == [Finish.STOP_WORDS, Finish.END_ID, Finish.LENGTH]


def check_a_failed_step_ends_its_requests_only() -> None:
    adapter, checkpoint = engine()
    batches: Any = adapter._engine
    forward = batches._model.forward

    def broken(*_: Any, **__: Any) -> None:
        batches._model.forward = forward
        raise RuntimeError("CUDA out of memory")

    submit(adapter, 1, PROMPT)
    submit(adapter, 2, PROMPT)
    adapter.step()
    batches._model.forward = broken
    refusals = adapter.step()
    assert sorted(one.request_id for one in refusals if isinstance(one, Refusal)) == [1, 2]
    assert "CUDA out of memory" in str(refusals[0])
    assert answer(adapter) == generated(checkpoint)


def check_what_cannot_run_is_refused_before_the_engine_sees_it() -> None:
    adapter, _ = engine()
    wrong: list[tuple[list[int], dict[str, Any]]] = [
        ([99999], {}),
        ([], {}),
        ([5] * 200, {}),
        (PROMPT, {"max_tokens": 10**6}),
        (PROMPT, {"temperature": -1.0}),
        (PROMPT, {"bad_words": ((99999,),)}),
    ]
    for prompt, sampling in wrong:
        try:
            submit(adapter, 1, prompt, **sampling)
        except RequestRefused:
            continue
        raise AssertionError(f"{prompt[:3]} {sampling} was taken")
    assert len(answer(adapter, temperature=0.0, top_p=0.0, top_k=0)) == 24
    assert len(answer(adapter, temperature=1e-30, top_p=0.9)) == 24


def check_draws_follow_the_distribution() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, -5.0]]).log_softmax(-1)
    cases: list[tuple[dict[str, Any], list[float]]] = [
        ({"top_p": 1.0}, scores.exp()[0].tolist()),
        ({"top_k": 2, "temperature": 1.0}, [0.7311, 0.2689, 0, 0, 0]),
        ({"top_p": 0.6}, [1.0, 0, 0, 0, 0]),
        ({"top_p": 1.0, "temperature": 2.0}, (scores / 2).softmax(-1)[0].tolist()),
        ({"top_k": 3, "top_p": 0.8, "bad_words": ((0,),)}, [0, 0.7311, 0.2689, 0, 0]),
    ]
    for asked, wanted in cases:
        rules = [
            TokenRules(GenerationRequest(1, array("i", [0]), Sampling(max_tokens=9, seed=seed, **asked)))
            for seed in range(4000)
        ]
        drawn = choose(scores.expand(4000, -1), rules, PenaltyTable(5, "cpu")).tokens
        share = torch.bincount(drawn, minlength=5) / 4000
        assert (share - torch.tensor(wanted)).abs().max() < 0.03, (asked, share.tolist(), wanted)


def check_prompts_are_read_beside_running_answers() -> None:
    adapter, checkpoint = engine()
    submit(adapter, 1, PROMPT, max_tokens=60)
    adapter.step()
    long = [7 + place % 200 for place in range(60)]
    submit(adapter, 2, long)
    found = finish(adapter)
    assert tokens(found[2]) == generated(checkpoint, long)
    assert len(tokens(found[1])) == 59


def run(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception:  # a check's own failure is what is reported
        return traceback.format_exc()
    return ""


def main() -> None:
    for name in sys.argv[1:] or CHECKS:
        check = globals()[f"check_{name}"]
        sys.stdout.write("CHECK " + json.dumps({"name": name, "problem": run(check)}) + "\n")


if __name__ == "__main__":
    main()
