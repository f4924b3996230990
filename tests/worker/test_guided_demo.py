"""The demo model answers in the form it is asked for, whatever the prompt, beside answers that are free."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from tokenizers import Tokenizer

from builder.checkpoint import write_checkpoint
from builder.families import Layout
from runtime.demo_checkpoint import demo_checkpoint
from tests.worker import test_guided_answers as guided
from worker.openvino import adapter
from worker.openvino.adapter import OpenVinoAdapter
from worker.protocol import Finish

END_ID = 2  # <|im_end|>
EXPECTED = json.loads((Path(__file__).parent / "data" / "expected_demo.json").read_text(encoding="utf-8"))
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 30},
        "mood": {"enum": ["good", "bad", None]},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "when": {"type": "string", "format": "date"},
        "words": {"type": "array", "items": {"$ref": "#/$defs/word"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["title", "mood", "score", "words"],
    "additionalProperties": False,
    "$defs": {"word": {"type": "string", "pattern": "^[a-z]{2,8}$"}},
}
PROMPTS = (
    "Tell me about the sea.",
    "Write a poem.",
    "What is 2 + 2?",
    'Say "\\" and nothing else.',
    "用中文回答:你好吗?",
    "Answer with one JSON object.",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_checkpoint() / "tokenizer.json"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, graph_cache: Path) -> OpenVinoAdapter:
    package = tmp_path_factory.mktemp("demo")
    write_checkpoint(demo_checkpoint(), package / "checkpoint", Layout(dtype="float16"))
    (package / "tokenizer").mkdir()
    shutil.copy(demo_checkpoint() / "tokenizer.json", package / "tokenizer")
    return adapter.load(package, {"precision": "exact", "kv_cache_tokens": 4096, "max_batch_size": 16})


def ask(demo: OpenVinoAdapter, tokenizer: Tokenizer, prompt: str, **sampling: Any) -> int:
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return guided.submit(demo, prompt=tokenizer.encode(text).ids, end_id=END_ID, **sampling)


def test_answers_to_a_schema_are_valid_and_leave_free_answers_as_they_are(
    demo: OpenVinoAdapter, tokenizer: Tokenizer
) -> None:
    form: dict[str, Any] = {"guide_type": "json_schema", "guide": json.dumps(SCHEMA), "max_tokens": 200}
    sampled: dict[str, Any] = {"temperature": 1.2, "top_p": 0.95, "seed": 11}
    extras = itertools.cycle(({}, sampled))
    ids = [
        ask(demo, tokenizer, prompt, **form, **extra) for prompt, extra in zip(PROMPTS, extras, strict=False)
    ]
    free = list(EXPECTED.values())[:2]
    free_ids = [
        guided.submit(demo, prompt=row["ids"], end_id=None, max_tokens=len(row["tokens"])) for row in free
    ]
    answers = guided.run(demo)
    assert [answers.tokens[request_id] for request_id in free_ids] == [row["tokens"] for row in free]
    validator = jsonschema_rs.validator_for(SCHEMA)
    for request_id in ids:
        text = tokenizer.decode(answers.tokens[request_id], skip_special_tokens=False)
        assert answers.finish[request_id] == Finish.END_ID, text
        validator.validate(json.loads(text))


def test_any_json_and_a_choice(demo: OpenVinoAdapter, tokenizer: Tokenizer) -> None:
    prompt = "Describe Anna, who is 33, as a JSON object with the keys name and age."
    anything = ask(demo, tokenizer, prompt, guide_type="json", max_tokens=200)
    choice = ask(demo, tokenizer, "Is water wet?", guide_type="regex", guide="(yes|no)")
    answers = guided.run(demo)
    assert answers.finish == {anything: Finish.END_ID, choice: Finish.END_ID}
    assert isinstance(json.loads(tokenizer.decode(answers.tokens[anything])), dict)
    assert tokenizer.decode(answers.tokens[choice]) in ("yes", "no")


def test_a_bias_bars_the_word_that_would_come(demo: OpenVinoAdapter, tokenizer: Tokenizer) -> None:
    def first(**sampling: Any) -> list[int]:
        request_id = ask(demo, tokenizer, "What is the capital of France?", max_tokens=8, **sampling)
        return guided.run(demo).tokens[request_id]

    free = first()
    assert free[0] not in first(token_bias=((free[0], -100.0),))
    assert set(first(token_bias=((free[0], 100.0), (free[1], 100.0)))) <= set(free[:2])
