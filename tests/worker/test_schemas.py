"""What becomes of a JSON schema before the grammar compiler sees it, and of a tokenizer's vocabulary."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from tests.worker.byte_tokenizer import END_ID, SPECIAL, byte_tokenizer, write_byte_tokenizer
from worker.openvino.patterns import pattern_rule
from worker.openvino.schemas import schema_grammar
from worker.openvino.vocabulary import token_bytes
from worker.protocol import Status
from worker.validate import RequestRefused


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (False, "false as a schema at #"),
        (3, "3 as a schema at #"),
        ({"type": "objct"}, 'type "objct" at #'),
        ({"$ref": "#/$defs/none"}, "which the schema does not hold"),
        ({"multipleOf": 3}, "multipleOf at #"),
        ({"properties": {"a": {"items": {"not": {}}}}}, "not at #/properties/a/items"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{}, {"if": {}}]}}}, "if at #/$defs/a/anyOf/1"),
        ({"additionalProperties": {"uniqueItems": True}}, "uniqueItems at #/additionalProperties"),
        ({"allOf": [{}, {}]}, "allOf of other than one schema"),
        ({"anyOf": []}, "an empty list"),
        ({"$ref": "#", "type": "string"}, "type beside $ref"),
        ({"enum": ["a"], "maxLength": 1}, "maxLength beside enum"),
        ({"anyOf": [{}], "required": []}, "required beside anyOf"),
        ({"type": "string", "enum": ["a", 1]}, "values of other types"),
        ({"type": "number", "minimum": 1.5}, "minimum of a number that is no integer"),
        ({"type": "integer", "minimum": 0, "maximum": 1000}, "1 to 1000 integers"),
        ({"type": "integer", "maximum": 5}, "1 to 1000 integers"),
        ({"type": "integer", "minimum": 6, "maximum": 5}, "1 to 1000 integers"),
        ({"type": "object", "required": ["a"]}, "required of 'a'"),
        ({"pattern": "a", "maxLength": 3}, "maxLength beside pattern"),
        ({"pattern": '"'}, "this pattern"),
        ({"minLength": 3, "maxLength": 2}, "lengths that no string has"),
        ({"minItems": 3, "maxItems": 2}, "numbers of items"),
        ({"required": [[]]}, "required of []"),
        ({"required": 3}, "required of this kind"),
        ({"properties": []}, "properties of this kind"),
        ({"type": "integer", "minimum": "3"}, "minimum of this kind"),
        ({"maxLength": "3"}, "maxLength of this kind"),
        ({"pattern": 3}, "pattern of this kind"),
    ],
)
def test_what_is_not_carried_out_is_refused_with_its_place(schema: Any, words: str) -> None:
    with pytest.raises(RequestRefused, match=re.escape(words)) as refused:
        schema_grammar(schema)
    assert refused.value.status == Status.UNSUPPORTED


@pytest.mark.parametrize(
    ("schema", "root"),
    [
        (True, "value"),
        ({"title": "not", "default": 3}, "value"),
        ({"const": 'a"b'}, r'"\"a\\\"b\""'),
        ({"type": "integer", "minimum": 9, "exclusiveMaximum": 12}, '("9" | "10" | "11")'),
        ({"type": "integer", "exclusiveMinimum": 0}, "positive"),
        ({"type": ["boolean", "null"]}, '(boolean | "null")'),
        ({"maxLength": 3}, r'("\"" counted{0,3} "\"")'),
        ({"pattern": "^a+$"}, r'("\"" ("a" +) "\"")'),
        ({"anyOf": [{"type": "number"}, {"enum": [None]}]}, '(number | "null")'),
    ],
)
def test_the_rule_of_a_small_schema(schema: Any, root: str) -> None:
    assert schema_grammar(schema).splitlines()[0] == f"root ::= {root}"


def test_a_schema_that_names_itself_has_one_rule_for_it() -> None:
    node = {"type": "array", "items": {"$ref": "#/$defs/node"}}
    grammar = schema_grammar({"$ref": "#/$defs/node", "$defs": {"node": node}})
    assert grammar.count("reference0 ::=") == 1


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        (r"^\d+\.[a-c]$", '[0-9] + "." [a-c]'),
        ("^.{2}$", r'[^"\\\x00-\x1f] {2}'),
        ("[^ab]", r'[^"\\\x00-\x1fab]'),
        (r"(?:x|y)?[\w.-]", '( "x" | "y" ) ? [a-zA-Z0-9_.\\-]'),
        ("", '""'),
        ("é", '"é"'),
    ],
)
def test_a_pattern_becomes_a_rule(pattern: str, rule: str) -> None:
    assert pattern_rule(pattern) == rule


@pytest.mark.parametrize(
    "pattern",
    [
        '"',
        r"\\",
        r"\s",
        r"\n",
        "[ -~]",
        "[",
        "[]",
        r"[\s]",
        "\t",
        r"\x22",
        "[A-z]",
        "[^é]",
        "(?=a)",
        "a*?",
        "a^",
        "a{2}?",
    ],
)
def test_a_pattern_that_needs_escapes_or_more_than_ebnf_is_none(pattern: str) -> None:
    assert pattern_rule(pattern) is None


def test_tokens_of_bytes_are_their_bytes(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path)
    tokens = token_bytes(tmp_path / "tokenizer.json", 280)
    assert tokens is not None
    assert len(tokens) == 280
    assert tokens[: len(SPECIAL)] == [b""] * len(SPECIAL)
    assert sorted(tokens[len(SPECIAL) : 259]) == [bytes([byte]) for byte in range(256)]
    assert tokens[259:] == [b""] * 21
    text = "né 😀"
    assert b"".join(tokens[token] for token in byte_tokenizer().encode(text).ids) == text.encode()
    assert tokens[END_ID] == b""


def test_tokens_of_sentencepiece_are_their_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"<0xE4>": 0, "▁the": 1, "é": 2}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert token_bytes(tmp_path / "tokenizer.json", 3) == [b"\xe4", b" the", "é".encode()]


def test_a_vocabulary_without_texts_of_its_own_is_none(tmp_path: Path) -> None:
    assert token_bytes(tmp_path / "tokenizer.json", 3) is None
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "##b": 1}))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert token_bytes(tmp_path / "tokenizer.json", 2) is None
