"""The cuda-vllm engine on a real vLLM, built for the CPU or on a GPU, in float32, with the demo model.

    python -m tests.worker.vllm_checks CHECKPOINT [NAME ...]

prints a line `CHECK {"name": ..., "problem": ...}` for each check. tests/worker/test_vllm_engine.py runs it
with the Python that EW_VLLM_PYTHON names.
"""

from __future__ import annotations

import json
import sys
import traceback
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from worker.protocol import Finish, GenerationRequest, Refusal, Sampling, Update
from worker.vllm.adapter import VllmAdapter, load

EXPECTED = json.loads((Path(__file__).parent / "data" / "expected_demo.json").read_text(encoding="utf-8"))
PROMPT, PLAIN = next((one["ids"], one["tokens"]) for one in EXPECTED.values())
END_ID = 2
CHECKS = (
    "greedy_tokens",
    "ends",
    "rules",
    "log_probs_and_seeds",
    "guides",
    "cancelling",
    "cancelled_requests_give_their_blocks_back",
)
# Few, so that the share of a single one can be read.
KV_BLOCKS = 512


def run(adapter: VllmAdapter, asked: dict[int, tuple[list[int], dict[str, Any]]]) -> dict[int, list[Update]]:
    """What came, by request; a refusal is a failure."""
    for number, (prompt, sampling) in asked.items():
        adapter.submit(
            GenerationRequest(number, array("i", prompt), Sampling(**{"max_tokens": 8, **sampling}))
        )
    found: dict[int, list[Update]] = {number: [] for number in asked}
    while adapter.busy:
        for result in adapter.step():
            assert not isinstance(result, Refusal), result
            found[result.request_id].append(result)
    return found


def tokens(updates: list[Update]) -> list[int]:
    return [token for update in updates for token in update.tokens]


def answers(adapter: VllmAdapter, **asked: dict[str, Any]) -> dict[str, list[Update]]:
    found = run(adapter, {number: (PROMPT, sampling) for number, sampling in enumerate(asked.values())})
    return dict(zip(asked, found.values(), strict=True))


def check_greedy_tokens(adapter: VllmAdapter) -> None:
    asked = {
        number: (one["ids"], {"max_tokens": len(one["tokens"]), "end_id": END_ID})
        for number, one in enumerate(EXPECTED.values())
    }
    found = run(adapter, asked)
    for number, one in enumerate(EXPECTED.values()):
        assert tokens(found[number]) == [token for token in one["tokens"] if token != END_ID]


def check_ends(adapter: VllmAdapter) -> None:
    found = answers(
        adapter, word={"stop_words": (tuple(PLAIN[2:4]),)}, end={"end_id": PLAIN[3]}, length={"max_tokens": 3}
    )
    assert (tokens(found["word"]), found["word"][-1].finish) == (PLAIN[:4], Finish.STOP_WORDS)
    assert (tokens(found["end"]), found["end"][-1].finish) == (PLAIN[:3], Finish.END_ID)
    assert (tokens(found["length"]), found["length"][-1].finish) == (PLAIN[:3], Finish.LENGTH)


def check_rules(adapter: VllmAdapter) -> None:
    found = answers(
        adapter,
        bad={"bad_words": ((PLAIN[0],), tuple(PLAIN[1:3]))},
        late={"end_id": PLAIN[1], "min_tokens": 5},
        bias={"token_bias": ((PLAIN[0], -1000.0),)},
    )
    assert tokens(found["bad"])[0] != PLAIN[0]
    assert len(tokens(found["late"])) >= 5
    assert tokens(found["bias"])[0] != PLAIN[0]


def check_log_probs_and_seeds(adapter: VllmAdapter) -> None:
    drawn = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 12}
    found = answers(
        adapter, one={**drawn, "seed": 5}, two={**drawn, "seed": 5}, three={**drawn, "seed": 6},
        plain={"log_probs": True},
    )  # fmt: skip
    assert tokens(found["one"]) == tokens(found["two"]) != tokens(found["three"])
    values = [value for update in found["plain"] for value in update.log_probs or ()]
    assert len(values) == 8
    assert all(value <= 0 for value in values)


def check_guides(adapter: VllmAdapter) -> None:
    properties = {"city": {"enum": ["Paris", "Lyon"]}, "big": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    found = answers(
        adapter,
        schema={"guide_type": "json_schema", "guide": json.dumps(schema), "max_tokens": 64},
        regex={"guide_type": "regex", "guide": "(yes|no)", "max_tokens": 8},
        grammar={"guide_type": "ebnf_grammar", "guide": 'root ::= "left" | "right"', "max_tokens": 8},
        plain={},
    )
    tokenizer = Tokenizer.from_file(str(Path(sys.argv[1]) / "tokenizer.json"))
    text = {name: tokenizer.decode(tokens(updates)) for name, updates in found.items()}
    answer = json.loads(text["schema"])
    assert set(answer) == {"city", "big"}
    assert answer["city"] in ("Paris", "Lyon")
    assert isinstance(answer["big"], bool)
    assert text["regex"] in ("yes", "no")
    assert text["grammar"] in ("left", "right")
    assert tokens(found["plain"]) == PLAIN[:8]


def check_cancelling(adapter: VllmAdapter) -> None:
    adapter.submit(GenerationRequest(1, array("i", PROMPT), Sampling(max_tokens=300)))
    while not adapter.step():
        pass
    assert adapter.load().kv_used_fraction > 0
    adapter.cancel(1)
    assert (adapter.active, adapter.busy, adapter.load().kv_used_fraction) == (0, False, 0.0)
    assert tokens(answers(adapter, again={})["again"]) == PLAIN[:8]


def check_cancelled_requests_give_their_blocks_back(adapter: VllmAdapter) -> None:
    alone = max(shares_used(adapter, (1,), PROMPT[:8], max_tokens=100))
    for turn in range(3):
        numbers = range(100 * turn + 10, 100 * turn + 74)
        busiest = max(shares_used(adapter, numbers, [5, turn, 7], max_tokens=300, steps=60))
        assert busiest > 3 * alone, (busiest, alone)
        for number in numbers:
            adapter.cancel(number)
    after = shares_used(adapter, (2,), PROMPT[:8], max_tokens=100)
    # What the core sent before it heard of the last cancellations comes first.
    assert max(after[len(after) // 2 :]) <= alone + 1 / KV_BLOCKS, (after, alone)


def shares_used(
    adapter: VllmAdapter, numbers: Iterable[int], prompt: list[int], *, max_tokens: int, steps: int = 10**6
) -> list[float]:
    """The share of the KV cache in use after each step of these requests, for so many steps at most."""
    for number in numbers:
        adapter.submit(GenerationRequest(number, array("i", prompt), Sampling(max_tokens=max_tokens)))
    shares: list[float] = []
    while adapter.busy and len(shares) < steps:
        if adapter.step():
            shares.append(adapter.load().kv_used_fraction)
    return shares


def problem_of(check: Callable[[VllmAdapter], None], adapter: VllmAdapter) -> str:
    try:
        check(adapter)
    except Exception:  # a check's own failure is what is reported
        return traceback.format_exc()
    return ""


def main() -> None:
    options = {"dtype": "float32", "max_batch_size": 16}
    arguments = {"enforce_eager": True, "max_model_len": 512, "num_gpu_blocks_override": KV_BLOCKS}
    adapter = load(Path(sys.argv[1]), {**options, "engine_args": arguments})
    for name in sys.argv[2:] or CHECKS:
        problem = problem_of(globals()[f"check_{name}"], adapter)
        sys.stdout.write("CHECK " + json.dumps({"name": name, "problem": problem}) + "\n")
    adapter._core.shutdown()


if __name__ == "__main__":
    main()
