"""Exact text: whatever the tokenizer, the cuts and the stop strings, a stream joined is the answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import ModelConfig
from proxy.chunks import StreamTraits
from proxy.engine_request import Sampling
from proxy.generation import Generation, GenerationRequest
from proxy.models import ServedModel
from proxy.stops import StopMatcher
from proxy.triton import TokenStream
from tests.proxy.tokenizers_made import byte_level, sentencepiece, tiktoken_like

KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece, "tiktoken-like": tiktoken_like}
PIECES = st.sampled_from(
    [
        "Hello",
        " world",
        "你好",
        "世界",
        "，",
        "👋",
        "👩‍👩‍👧",
        "مرحبا",
        "\n",
        "  ",
        "The",
        " ox",
        "é",
        "e\u0301",
        "<",
        "0",
    ]
)
TEXTS = st.lists(PIECES, min_size=1, max_size=12).map("".join)
CUTS = st.lists(st.integers(1, 7), min_size=1, max_size=6)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=KINDS)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("package")
    (folder / "tokenizer").mkdir()
    KINDS[request.param]().save(str(folder / "tokenizer" / "tokenizer.json"))
    config = ModelConfig(engine="cpu", model_path=str(folder))  # type: ignore[call-arg]
    return ServedModel(request.param, config, folder)


class ScriptedStream:
    """The token stream of an engine that answers in groups of any size."""

    received_at = 1.0
    answered = True
    reused = False

    def __init__(self, groups: list[list[int]]) -> None:
        self._groups = list(groups)
        self.cancelled = False
        self.log_probs: list[float] = []

    async def open(self, headers: bytes) -> None:
        await asyncio.sleep(0)

    async def read(self) -> list[int] | None:
        return self._groups.pop(0) if self._groups else None

    def take(self) -> list[int] | None:
        return self._groups.pop(0) if self._groups else None

    def ready(self) -> bool:
        return True

    def cancel(self) -> None:
        self.cancelled = True


def generate(model: ServedModel, ids: list[int], cuts: list[int], stop: tuple[str, ...] = ()) -> Generation:
    """A generation that will produce `ids`, cut into groups of the given sizes."""
    groups, at, index = [], 0, 0
    while at < len(ids):
        size = cuts[index % len(cuts)]
        groups.append(ids[at : at + size])
        at, index = at + size, index + 1
    request = GenerationRequest(model, "id", [1], len(ids) + 1, Sampling(), stop)
    generation = Generation(None, request, 0.0, StreamTraits(True, "delta"))  # type: ignore[arg-type]
    generation._stream = ScriptedStream(groups)  # type: ignore[assignment]
    return generation


def texts(generation: Generation) -> list[str]:
    async def run() -> list[str]:
        return [text async for text in generation.texts()]

    return asyncio.run(run())


@FAST
@given(text=TEXTS, cuts=CUTS)
def test_a_stream_joined_is_the_decoded_text(model: ServedModel, text: str, cuts: list[int]) -> None:
    ids = model.tokenizer.encode(text).ids
    pieces = texts(generate(model, ids, cuts))
    assert "".join(pieces) == model.tokenizer.decode(ids)
    assert all(pieces)


@FAST
@given(text=TEXTS, cuts=CUTS, stop=st.lists(TEXTS, min_size=1, max_size=3))
def test_stop_strings_cut_the_same_however_tokens_come(
    model: ServedModel, text: str, cuts: list[int], stop: list[str]
) -> None:
    ids = model.tokenizer.encode(text).ids
    one_by_one = generate(model, ids, [1], tuple(stop))
    grouped = generate(model, ids, cuts, tuple(stop))
    shown = "".join(texts(grouped))
    assert shown == "".join(texts(one_by_one))
    assert grouped.stop_reason == one_by_one.stop_reason
    assert grouped.completion_tokens == one_by_one.completion_tokens
    whole = model.tokenizer.decode(ids)
    assert whole.startswith(shown)
    if grouped.stop_reason is None:
        assert shown == whole and not any(one in whole for one in stop)
    else:
        assert whole[len(shown) :].startswith(grouped.stop_reason)
        assert not any(one in shown for one in stop)


@FAST
@given(ids=st.lists(st.integers(0, 250), max_size=30), cuts=CUTS)
def test_any_ids_never_show_a_replacement_mid_stream_that_later_ids_complete(
    model: ServedModel, ids: list[int], cuts: list[int]
) -> None:
    grouped, single = texts(generate(model, ids, cuts)), texts(generate(model, ids, [1]))
    assert "".join(grouped) == "".join(single)


@pytest.mark.parametrize(
    "stops, pieces, shown, matched",
    [
        (("ab",), ["a", "b"], "", "ab"),
        (("ab",), ["xa", "c"], "xac", None),
        (("abab",), ["ab", "a", "c"], "abac", None),
        (("b", "abc"), ["ab", "c"], "a", "b"),
        (("END",), ["x E", "N", "Dy"], "x ", "END"),
        (("\n\n",), ["a\n", "\nb"], "a", "\n\n"),
    ],
)
def test_stop_matcher(stops: tuple[str, ...], pieces: list[str], shown: str, matched: str | None) -> None:
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        out += matcher.push(piece)
        if matcher.matched:
            break
    assert (out + matcher.flush(), matcher.matched) == (shown, matched)


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopMatcher(("STOP",))
    assert matcher.push("Hello S") == "Hello "
    assert matcher.push("un") == "Sun"


def test_leading_space_of_sentencepiece_is_kept() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("The ox").ids
    assert tokenizer.decode(ids) == "The ox"


def test_no_double_bos(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = sentencepiece()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    template = "{{ bos_token }}{{ messages[0]['content'] }}"
    settings_file = tmp_path / "tokenizer" / "tokenizer_config.json"
    settings_file.write_text(json.dumps({"bos_token": {"content": "<s>"}, "chat_template": template}))
    config = ModelConfig(engine="cpu", model_path=str(tmp_path))  # type: ignore[call-arg]
    model = ServedModel("m", config, tmp_path)
    assert model.encode_chat([{"role": "user", "content": "你好"}]).count(1) == 1
    assert model.encode_raw("<s>你好").count(1) == 1
    assert model.encode_raw("你好")[0] == 1


def test_one_event_may_arrive_in_any_pieces() -> None:
    event = b'data: {"output_ids":[7,8],"sequence_length":2}\n\n' + b'data: {"output_ids":9}\n\n'
    for size in range(1, len(event)):
        stream = TokenStream(None, None)  # type: ignore[arg-type]
        ids: list[int] = []
        for at in range(0, len(event), size):
            ids += stream._parse(event[at : at + size])
        assert ids == [7, 8, 9]
