"""Writes the expected ids of tests/runtime/data/tokenizer_corpus.json, using nothing of the project.

The reference is SmolLM2's own vocabulary and merges as the GGUF file carries them, run by a plain BPE over
the pre-tokenizer that llama.cpp documents for `smollm`: single digits, then GPT-2's expression. Where no
digit is involved, transformers' own GGUF reader must give the same ids (it ignores the pre-tokenizer's name).

Run with transformers, gguf, torch and regex installed:
    python tests/runtime/make_tokenizer_ids.py FOLDER_WITH_THE_GGUF
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import regex  # type: ignore[import-untyped]
from transformers import AutoTokenizer

DATA = Path(__file__).with_name("data")
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGIT = regex.compile(r"\p{N}")
GPT2 = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
SPECIAL = 3


class Reference:
    """Byte-level BPE in its textbook form."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        read: Any = lambda name: reader.get_field(name).contents()  # type: ignore[union-attr]  # noqa: E731
        self.ids = {text: number for number, text in enumerate(read("tokenizer.ggml.tokens"))}
        kinds = read("tokenizer.ggml.token_type")
        special = [text for text, number in self.ids.items() if kinds[number] == SPECIAL]
        self.special = regex.compile("(" + "|".join(map(regex.escape, special)) + ")")
        merges = read("tokenizer.ggml.merges")
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.letters = byte_letters()

    def encode(self, text: str) -> list[int]:
        parts = [part for part in self.special.split(text) if part]
        return [number for part in parts for number in self.encode_part(part)]

    def encode_part(self, part: str) -> list[int]:
        if self.special.fullmatch(part):
            return [self.ids[part]]
        words = [word for piece in split_keeping(DIGIT, part) for word in GPT2.findall(piece)]
        return [self.ids[token] for word in words for token in self.bpe(word)]

    @cache  # noqa: B019  (one object, one run)
    def bpe(self, word: str) -> tuple[str, ...]:
        tokens = [self.letters[byte] for byte in word.encode("utf-8")]
        while len(tokens) > 1:
            pairs = list(zip(tokens, tokens[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, 10**9))
            if best not in self.ranks:
                break
            tokens = merge(tokens, best)
        return tuple(tokens)


def merge(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    position = 0
    while position < len(tokens):
        if tuple(tokens[position : position + 2]) == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(tokens[position])
            position += 1
    return merged


def split_keeping(separator: regex.Pattern[str], text: str) -> list[str]:
    pieces, last = [], 0
    for match in separator.finditer(text):
        pieces += [text[last : match.start()], match[0]]
        last = match.end()
    return [piece for piece in [*pieces, text[last:]] if piece]


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}


def main(folder: Path) -> None:
    corpus = json.loads((DATA / "tokenizer_corpus.json").read_text(encoding="utf-8"))
    reference = Reference(folder / GGUF_NAME)
    ids = [reference.encode(text) for text in corpus]
    second = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_NAME)
    for text, expected in zip(corpus, ids, strict=True):
        if not DIGIT.search(text):
            assert second.encode(text, add_special_tokens=False) == expected, text
    lines = ",\n".join("  " + json.dumps(row) for row in ids)
    (DATA / "tokenizer_ids.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
