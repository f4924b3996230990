"""Streams equal `tokenizer.decode`, for every kind of decoder, on tokenizers built here."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from common.detokenize import REPLACEMENT, IncrementalDecoder, TokenTexts

SPECIAL = ["<s>", "</s>", "<|im_end|>"]
WORDS = ["▁Hello", "▁world", "▁", "▁▁", "你", "好", "!", "▁你好", "a", "b", " ", "é", "▁<0xZZ>"]
SAMPLE = "  Hello  world! 你好，世界 👩‍👩‍👧‍👦 naïve 🇨🇳 ᚠᛇ \u0000 \n\t end "


def byte_level(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """Tiktoken-like: all bytes, and merges that cut Chinese characters and emoji in two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "H"), ("ä", "½"), ("å", "¥"), ("½", "ł"), ("ð", "Ł"), ("ĳ", "©")]
    vocab = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoder or decoders.ByteLevel()
    return with_specials(tokenizer)


def sentencepiece(*, strip: bool = True, byte_fallback: bool = True) -> Tokenizer:
    """Llama-2-like: word pieces with U+2581, byte tokens for the rest."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS, REPLACEMENT]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    chain: list[decoders.Decoder] = [decoders.Replace("▁", " ")]
    chain += [decoders.ByteFallback()] if byte_fallback else []
    chain += [decoders.Fuse()]
    chain += [decoders.Strip(" ", 1, 0)] if strip else []
    tokenizer.decoder = decoders.Sequence(chain)
    return with_specials(tokenizer)


def with_decoder(decoder: decoders.Decoder | None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "a"))
    if decoder is not None:
        tokenizer.decoder = decoder
    return with_specials(tokenizer)


def with_specials(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens(
        [AddedToken("<think> 思考", normalized=False), AddedToken("<tool>", normalized=False)]
    )
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    assert token_id is not None
    return token_id


TOKENIZERS = {
    "byte-level": byte_level(),
    "byte-level-in-sequence": byte_level(decoders.Sequence([decoders.ByteLevel()])),
    "llama": sentencepiece(),
    "gemma": sentencepiece(strip=False),
    "no-byte-fallback": sentencepiece(byte_fallback=False),
    "metaspace": with_decoder(decoders.Metaspace()),
    "metaspace-first": with_decoder(decoders.Metaspace(prepend_scheme="first")),
    "metaspace-never": with_decoder(decoders.Metaspace(prepend_scheme="never")),
}
WINDOWED = {
    "wordpiece": with_decoder(decoders.WordPiece()),
    "bpe-suffix": with_decoder(decoders.BPEDecoder()),
    "none": with_decoder(None),
    "regex-replace": with_decoder(decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()])),
}


def stream(
    tokenizer: Tokenizer | TokenTexts, ids: list[int], sizes: list[int], skip: bool = True
) -> list[str]:
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    chunks, start = [], 0
    for size in sizes:
        chunks.append(decoder.push(ids[start : start + size]))
        start += size
    return [*chunks, decoder.push(ids[start:]), decoder.flush()]


def reference(tokenizer: Tokenizer, ids: list[int], skip: bool) -> str:
    """`tokenizer.decode`, with runs of byte tokens cut where characters end (see the module's docstring)."""
    if tokenizer not in (TOKENIZERS["llama"], TOKENIZERS["gemma"]):
        return tokenizer.decode(ids, skip_special_tokens=skip)
    specials = {tokenizer.token_to_id(token) for token in SPECIAL} if skip else set()
    known = [index for index in ids if index not in specials and tokenizer.id_to_token(index) is not None]
    runs = split_bad_runs(known, tokenizer)
    return tokenizer.decode(runs, skip_special_tokens=False)


def split_bad_runs(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Byte tokens that can be no part of a character become '�' tokens, so that the others decode."""
    replacement = id_of(tokenizer, REPLACEMENT)
    letters = [chr(index - 1) if 1 <= index <= 256 else chr(0x4E00) for index in ids]
    text = "".join(letters)
    good = re.compile(
        "[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
        "|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
        "|\xf4[\x80-\x8f][\x80-\xbf]{2}|\u4e00"
    )
    kept = {index for match in good.finditer(text) for index in range(*match.span())}
    return [token if index in kept else replacement for index, token in enumerate(ids)]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_joined_stream_equals_decode_of_all_ids(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    top = tokenizer.get_vocab_size(with_added_tokens=True) + 2
    ids = data.draw(st.lists(st.integers(0, top), max_size=40))
    sizes = data.draw(st.lists(st.integers(0, 5), max_size=10))
    skip = data.draw(st.booleans())
    assert "".join(stream(tokenizer, ids, sizes, skip)) == reference(tokenizer, ids, skip)


@pytest.mark.parametrize("name", ["byte-level", "llama", "gemma"])
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), sizes=st.lists(st.integers(0, 3), max_size=20))
def test_real_text_streams_without_replacement_characters(name: str, text: str, sizes: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text.replace(REPLACEMENT, "").replace("▁", ""), add_special_tokens=False).ids
    chunks = stream(tokenizer, ids, sizes)
    assert "".join(chunks) == tokenizer.decode(ids)
    assert REPLACEMENT not in "".join(chunks)
    assert chunks[-1] == ""


@pytest.mark.parametrize("name", ["byte-level", "llama"])
def test_a_character_is_sent_with_its_last_byte(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode("x👩🇨", add_special_tokens=False).ids
    decoder = IncrementalDecoder(tokenizer)
    sent = [decoder.push([token]) for token in ids]
    assert [text for text in sent if text] == ["x", "👩", "🇨"]


@pytest.mark.parametrize("name", WINDOWED)
@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, len(WORDS) + 4), max_size=30), sizes=st.lists(st.integers(0, 4), max_size=8)
)
def test_other_decoders_stream_through_a_window(name: str, ids: list[int], sizes: list[int]) -> None:
    tokenizer = WINDOWED[name]
    assert not TokenTexts(tokenizer).joinable
    assert "".join(stream(tokenizer, ids, sizes)) == tokenizer.decode(ids)


def test_a_cut_character_is_replaced_or_dropped_at_the_end() -> None:
    for name in ("byte-level", "llama"):
        tokenizer = TOKENIZERS[name]
        ids = tokenizer.encode("好👩", add_special_tokens=False).ids[:-1]
        kept, dropped = IncrementalDecoder(tokenizer), IncrementalDecoder(tokenizer)
        assert kept.push(ids) == dropped.push(ids) == "好"
        assert REPLACEMENT in kept.flush()
        assert dropped.flush(drop_incomplete=True) == ""
        assert kept.flush() == ""


def test_a_bad_byte_does_not_spoil_its_neighbours() -> None:
    tokenizer = TOKENIZERS["llama"]
    ids = [id_of(tokenizer, f"<0x{byte:02X}>") for byte in [*"你".encode(), 0xFF, *"好".encode()]]
    assert "".join(stream(tokenizer, ids, [1] * 7)) == f"你{REPLACEMENT}好"
    assert tokenizer.decode(ids) == REPLACEMENT * 7


def test_endless_bad_bytes_do_not_hold_back_text() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    bad = id_of(tokenizer, "ÿ")
    decoder = IncrementalDecoder(tokenizer)
    assert decoder.push([bad] * 50) == REPLACEMENT * 50


def test_streams_share_token_texts_and_not_state() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    first, second = IncrementalDecoder(texts), IncrementalDecoder(texts)
    pairs = [(first.push([token]), second.push([token])) for token in ids]
    assert "".join(text for text, _ in pairs) == SAMPLE
    assert "".join(text for _, text in pairs) == SAMPLE
