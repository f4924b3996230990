"""Preprocessing: prompts, chat templates, BOS, end ids, words, truncation."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors

from common.errors import UsageError
from tests.proxy.tokenizers_made import byte_level, sentencepiece

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def prompts(folder: Path, tokenizer: Tokenizer, **options: Any) -> Any:
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", **options.pop("settings", {})}
    generation = options.pop("generation", {})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    options = {"add_special_tokens": True, "truncation": "error", "max_input_len": 64, **options}
    return importlib.import_module("prompts").Prompts(folder, **options)


def test_a_prompt_has_exactly_one_bos(tmp_path: Path) -> None:
    tokenizer = with_bos(byte_level(), "<|im_start|>")
    made = prompts(tmp_path, tokenizer, settings={"chat_template": CHATML})
    bos = tokenizer.token_to_id("<|im_start|>")
    plain = made.encode("Hello", as_chat=False)
    assert plain == made.encode("<|im_start|>Hello", as_chat=False)
    assert plain.count(bos) == 1
    chat = made.encode("Hello", as_chat=True)
    assert chat[:2] != [bos, bos]
    assert tokenizer.decode(chat, skip_special_tokens=False) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    without = prompts(tmp_path, tokenizer, add_special_tokens=False)
    assert without.encode("Hello", as_chat=False) == plain[1:]


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [7, 2, 7]}, [7, 2]),
        ({"eos_token_id": 9}, [9, 2]),
        ({}, [2]),
    ],
)
def test_all_end_ids_count(tmp_path: Path, generation: dict[str, Any], expected: list[int]) -> None:
    made = prompts(tmp_path, byte_level(), generation=generation)
    assert made.end_ids == expected
    assert made.pad_id == expected[0]


def test_truncation_is_an_error_unless_asked_for(tmp_path: Path) -> None:
    tokenizer = with_bos(byte_level(), "<|im_start|>")
    text = "".join(chr(ord("A") + number % 26) for number in range(100))
    ids = tokenizer.encode(text).ids
    with pytest.raises(UsageError, match=rf"{len(ids)} tokens long, at most 64"):
        prompts(tmp_path, tokenizer).encode(text, as_chat=False)
    right = prompts(tmp_path, tokenizer, truncation="right").encode(text, as_chat=False)
    left = prompts(tmp_path, tokenizer, truncation="left").encode(text, as_chat=False)
    assert right == ids[:64]
    assert left == [ids[0], *ids[-63:]]


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = byte_level()
    expected = tokenizer.encode("你好，世界").ids
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    assert prompts(tmp_path, tokenizer).encode("你好，世界", as_chat=False) == expected


def test_empty_prompts_and_missing_templates_are_refused(tmp_path: Path) -> None:
    made = prompts(tmp_path, with_bos(byte_level(), "<|im_start|>"))
    with pytest.raises(UsageError, match="empty"):
        made.encode("", as_chat=False)
    with pytest.raises(UsageError, match="no chat template"):
        made.encode("x", as_chat=True)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_words_are_found_at_a_start_and_after_a_space(tmp_path: Path, make: Any) -> None:
    tokenizer = make()
    made = prompts(tmp_path, tokenizer)
    found = made.encode_words(["fox", ""])
    for text in ("fox", "the fox", "\nfox"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert any(ids[-len(word) :] == word for word in found), text
    assert all(tokenizer.decode(word).strip() == "fox" for word in found)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], [[], []]),
        ([[5]], [[5], [1]]),
        ([[1, 2, 3], [4, 5]], [[1, 2, 3, 4, 5], [3, 5, -1, -1, -1]]),
    ],
)
def test_word_list_format(rows: list[list[int]], expected: list[list[int]]) -> None:
    assert importlib.import_module("prompts").word_list(rows) == expected


def test_bias_adds_up_and_needs_a_weight_for_each_word(tmp_path: Path) -> None:
    made = prompts(tmp_path, byte_level())
    token = made.tokenizer.token_to_id("a")
    assert made.bias(["a", "a"], [1.0, 0.5]) == {token: 1.5}
    with pytest.raises(UsageError, match="2 embedding bias words and 1 weights"):
        made.bias(["a", "b"], [1.0])
