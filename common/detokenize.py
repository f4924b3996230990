"""Token ids to text, a few tokens at a time.

A token is often a part of a character, and some decoders treat the first token of a text in their own
way, so chunks that are decoded alone give U+FFFD and lose spaces. Here the text of each token is worked
out once, as bytes, in the way of the tokenizer's own decoder, and a stream joins bytes; so a push costs
one dictionary look-up a token. Decoders that are not a plain join of token texts (WordPiece, for one)
are run over a short window of tokens instead.

The joined text of a stream equals `tokenizer.decode` of all ids. One thing is better than there: where
a run of SentencePiece byte tokens (`<0xE4>`) holds a bad byte, `tokenizer.decode` gives up the whole run,
good characters too; they were sent already here and stay readable.

Standard library and `tokenizers` only: this file is copied into model repositories.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
EACH_BYTE = "ew-replace-each-byte"
WINDOW_TOKENS = 6
LONGEST_HOLD_TOKENS = 16

TextOfToken = Callable[[str], "str | bytes"]


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return REPLACEMENT * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)


class TokenTexts(dict[int, "str | bytes"]):
    """What each token id adds to a text; filled on first use, shared by all streams of one tokenizer.

    A value is text, or bytes where the token is not whole characters; special tokens that are skipped
    and ids outside the vocabulary are "". `joinable` is False where a token's text depends on its
    neighbours; then only `tokenizer` can decode.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        self._skipped = _special_ids(tokenizer) if skip_special_tokens else frozenset()
        steps = _decoder_steps(tokenizer)
        self.errors = "replace"
        self.strip_left: tuple[str, int] = ("", 0)
        self.first_token_drops = ""
        self._convert = self._converter(steps)
        self.joinable = self._convert is not None

    def __missing__(self, token_id: int) -> str | bytes:
        token = self._token(token_id)
        text = self._convert(token) if token and self._convert else ""
        self[token_id] = text
        return text

    def first_text(self, token_id: int) -> str | bytes:
        """The text of a token that opens a text: without Metaspace's mark."""
        if not self.first_token_drops:
            return self[token_id]
        return (self._token(token_id) or "").replace(self.first_token_drops, "")

    def _token(self, token_id: int) -> str | None:
        if token_id in self._skipped:
            return None
        token: str | None = self.tokenizer.id_to_token(token_id)
        return token

    def _converter(self, steps: list[dict[str, Any]]) -> TextOfToken | None:
        kinds = [str(step["type"]) for step in steps]
        if kinds == ["ByteLevel"]:
            return _byte_level_text
        if kinds == ["Metaspace"]:
            return self._metaspace(steps[0])
        if "Fuse" in kinds:
            return self._sentencepiece(steps, kinds.index("Fuse"))
        return None

    def _metaspace(self, step: dict[str, Any]) -> TextOfToken:
        mark = str(step["replacement"])
        if step.get("prepend_scheme", "always") != "never":
            self.first_token_drops = mark
        return lambda token: token.replace(mark, " ")

    def _sentencepiece(self, steps: list[dict[str, Any]], fuse: int) -> TextOfToken | None:
        """Replace*, ByteFallback?, Fuse, Strip?: the chain of Llama 2, Mistral, Yi and Gemma."""
        has_bytes = fuse > 0 and steps[fuse - 1]["type"] == "ByteFallback"
        replaces = steps[: fuse - has_bytes]
        plain = all(step["type"] == "Replace" and "String" in step["pattern"] for step in replaces)
        if not plain or not self._strips_left_only(steps[fuse + 1 :]):
            return None
        pairs = [(str(step["pattern"]["String"]), str(step["content"])) for step in replaces]
        if not has_bytes:
            return lambda token: _replace_all(token, pairs)
        self.errors = EACH_BYTE
        return lambda token: _byte_token(token) or _replace_all(token, pairs)

    def _strips_left_only(self, after: list[dict[str, Any]]) -> bool:
        if not after:
            return True
        if len(after) > 1 or after[0]["type"] != "Strip" or after[0]["stop"]:
            return False
        self.strip_left = (str(after[0]["content"]), int(after[0]["start"]))
        return True


class IncrementalDecoder:
    """One text stream: `push` ids as they come, `flush` at the end.

    `push` returns the text that the ids complete; a character whose last bytes are missing is held back.

    Args:
        tokenizer: a tokenizer, or the `TokenTexts` of one (make it once where streams are many).
        skip_special_tokens: as in `Tokenizer.decode`; not used when `tokenizer` is a `TokenTexts`.
        at_start: whether the first ids open the text; SentencePiece drops a space there.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | TokenTexts,
        skip_special_tokens: bool = True,
        *,
        at_start: bool = True,
    ) -> None:
        if isinstance(tokenizer, Tokenizer):
            tokenizer = TokenTexts(tokenizer, skip_special_tokens)
        stream = _JoinedStream if tokenizer.joinable else _WindowStream
        self._stream: _JoinedStream | _WindowStream = stream(tokenizer, at_start)
        self.push: Callable[[Iterable[int]], str] = self._stream.push

    @property
    def holds_back(self) -> bool:
        """Whether `flush` would have something to say."""
        return self._stream.holds_back

    def flush(self, *, drop_incomplete: bool = False) -> str:
        """What is held back: U+FFFD for an unfinished character, or nothing with `drop_incomplete`."""
        return self._stream.flush(drop_incomplete)


class _JoinedStream:
    """Joins token texts; `_pending` holds the at most three bytes of an unfinished character."""

    def __init__(self, texts: TokenTexts, at_start: bool) -> None:
        self._texts = texts
        self._pending = b""
        self._at_start = at_start and bool(texts.first_token_drops)
        self._strip, self._strip_count = texts.strip_left if at_start else ("", 0)

    @property
    def holds_back(self) -> bool:
        return bool(self._pending)

    def push(self, ids: Iterable[int]) -> str:
        texts, joined = self._texts, ""
        for token_id in ids:
            text = texts[token_id]
            if not text:
                continue
            if self._at_start:
                text = self._opening(token_id)
            joined += text if isinstance(text, str) and not self._pending else self._add(text)
        return self._cut_start(joined) if self._strip_count else joined

    def flush(self, drop_incomplete: bool) -> str:
        text = "" if drop_incomplete else self._decode(self._pending, final=True)
        self._pending = b""
        return text

    def _add(self, text: str | bytes) -> str:
        if isinstance(text, bytes):
            return self._decode(self._pending + text, final=False)
        return self._decode(self._pending, final=True) + text

    def _opening(self, token_id: int) -> str | bytes:
        self._at_start = False
        return self._texts.first_text(token_id)

    def _decode(self, data: bytes, *, final: bool) -> str:
        text, used = codecs.utf_8_decode(data, self._texts.errors, final)
        self._pending = data[used:]
        return text

    def _cut_start(self, text: str) -> str:
        while self._strip_count and text.startswith(self._strip):
            text = text[len(self._strip) :]
            self._strip_count -= 1
        if text:
            self._strip_count = 0
        return text


class _WindowStream:
    """Decodes a short window twice, without and with the new tokens, and sends the difference."""

    def __init__(self, texts: TokenTexts, at_start: bool) -> None:
        del at_start  # such decoders can only begin at a start
        self._tokenizer = texts.tokenizer
        self._skip_special = texts.skip_special_tokens
        self._sent_ids: list[int] = []
        self._held_ids: list[int] = []

    @property
    def holds_back(self) -> bool:
        return bool(self._held_ids)

    def push(self, ids: Iterable[int]) -> str:
        self._held_ids.extend(ids)
        text = self._new_text()
        if text.endswith(REPLACEMENT) and len(self._held_ids) < LONGEST_HOLD_TOKENS:
            return ""
        self._slide()
        return text

    def flush(self, drop_incomplete: bool) -> str:
        text = self._new_text()
        self._slide()
        return text.rstrip(REPLACEMENT) if drop_incomplete else text

    def _new_text(self) -> str:
        before = self._decode(self._sent_ids)
        return self._decode(self._sent_ids + self._held_ids)[len(before) :]

    def _slide(self) -> None:
        """Keep a window that shows some text, so that nothing in it is taken for the start."""
        ids = self._sent_ids + self._held_ids
        self._held_ids = []
        size = WINDOW_TOKENS
        while size < len(ids) and not self._decode(ids[-size:]):
            size *= 2
        self._sent_ids = ids[-size:]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip_special)
        return text


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokenizer's decoder as a flat list of its parts in the form of tokenizer.json."""
    if tokenizer.decoder is None:
        return []
    return _flatten(json.loads(tokenizer.decoder.__getstate__()))


def _flatten(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [part for inner in step["decoders"] for part in _flatten(inner)]


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of GPT-2's byte-level BPE: character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()


def _byte_level_text(token: str) -> str | bytes:
    try:
        data = bytes([_BYTE_OF[character] for character in token])
    except KeyError:  # an added token with other characters stands for itself
        return token
    return _whole_text(data)


def _whole_text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _byte_token(token: str) -> bytes:
    """The byte of `<0xE4>`; empty for any other token."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            return b""
    return b""


def _replace_all(token: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        token = token.replace(old, new)
    return token
