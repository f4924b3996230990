"""The client and the load test: against answers of every kind."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import EngineError, EnvironmentProblem, EwError, ServiceError, UsageError
from runtime import client, loadplot, loadtest
from runtime.asking import ask_streaming, ask_whole
from runtime.client import Endpoint
from runtime.loadtest import LoadRequest, Timing, percentile, summarise
from tests.runtime.fake_proxy import KEY, Script, fake_proxy


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def endpoint(script: Script) -> Iterator[Endpoint]:
    with fake_proxy(script) as found:
        yield found


BODY = {"modelId": "tiny", "prompt": "hello there"}


def test_a_stream_is_shown_piece_by_piece_with_its_receipt(endpoint: Endpoint, script: Script) -> None:
    shown: list[str] = []
    answer = ask_streaming(endpoint, BODY, shown.append)
    assert shown == ["Par", "is"]
    assert answer.text == "Paris"
    assert answer.tokens == 2
    assert answer.ttft > 0
    assert "stop" in answer.receipt()
    assert script.keys == [KEY]


def test_a_whole_answer_has_no_first_token_time(endpoint: Endpoint) -> None:
    answer = ask_whole(endpoint, BODY)
    assert answer.text == "Paris"
    assert answer.as_dict()["ttft_ms"] is None


@pytest.mark.parametrize(("end", "expected"), [("cut", "before its end"), ("error", "engine failed")])
def test_a_stream_that_is_not_whole_is_an_error(
    endpoint: Endpoint, script: Script, end: str, expected: str
) -> None:
    script.end = end
    with pytest.raises(EngineError, match=expected):
        ask_streaming(endpoint, BODY, lambda text: None)


def test_a_refusal_carries_message_and_hint(endpoint: Endpoint, script: Script) -> None:
    script.status = 429
    with pytest.raises(ServiceError, match=r"429: No\.") as caught:
        ask_whole(endpoint, BODY)
    assert caught.value.hint == "Ask later."


def test_nobody_there_is_a_clear_error() -> None:
    with pytest.raises(ServiceError, match="broke") as caught:
        ask_whole(Endpoint("http", "127.0.0.1", 9, "k"), BODY)
    assert caught.value.code == "unreachable"


def test_the_only_model_is_chosen_and_several_are_named(endpoint: Endpoint, script: Script) -> None:
    assert client.choose_model(endpoint, None) == "tiny"
    assert client.choose_model(endpoint, "other") == "other"
    script.models = ["a", "b"]
    with pytest.raises(UsageError) as caught:
        client.choose_model(endpoint, None)
    assert "a, b" in caught.value.hint


def test_addresses_and_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ew_home: Path) -> None:
    monkeypatch.setenv(client.KEY_VARIABLE, "ew-from-env")
    found = client.find_endpoint("gpu-1:8090")
    assert (found.url, found.key) == ("http://gpu-1:8090", "ew-from-env")
    assert "ew-from-env" not in repr(found)
    assert client.find_endpoint("https://gpu-1").port == 443
    key_file = tmp_path / "key"
    key_file.write_text("ew-from-file\n")
    assert client.find_endpoint("gpu-1", key_file).key == "ew-from-file"
    with pytest.raises(UsageError):
        client.find_endpoint("ftp://gpu-1")
    with pytest.raises(UsageError):
        client.find_endpoint("gpu-1", tmp_path / "none")
    with pytest.raises(ServiceError) as caught:
        client.find_endpoint()
    assert caught.value.code == "not_running"


@pytest.mark.parametrize("text", ["密钥", "two\nlines", "# README\n\nOf the project."])
def test_what_cannot_be_a_key_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "key").write_text(text, encoding="utf-8")
    monkeypatch.setenv(client.KEY_VARIABLE, text)
    for key_file in (None, tmp_path / "key"):
        with pytest.raises(UsageError) as caught:
            client.find_endpoint("gpu-1", key_file)
        assert caught.value.code == "key_malformed"
        assert text not in str(caught.value)


def test_a_key_that_is_refused_is_asked_for_in_the_words_of_the_command_line(
    endpoint: Endpoint, script: Script
) -> None:
    script.status = 401
    with pytest.raises(ServiceError) as caught:
        ask_whole(endpoint, BODY)
    assert "--key-file" in caught.value.hint


def test_load_is_measured_at_every_level(endpoint: Endpoint, script: Script) -> None:
    request = LoadRequest("tiny", concurrency=(4, 1), input_len=20, output_len=5, least=6)
    levels = loadtest.run(endpoint, request)
    assert [level.concurrency for level in levels] == [1, 4]
    assert [level.requests for level in levels] == [6, 8]
    for level in levels:
        assert level.failed == 0
        assert level.input_tokens == 20, "two tokens a word: the words were halved"
        assert level.output_tokens == 5
        assert level.ttft_p50 is not None
        assert level.ttft_p50 <= (level.ttft_p99 or 0)
    measured = [body for body in script.bodies if body["maxTokens"] == 5]
    assert all(body["minTokens"] == 5 and body["raw"] for body in measured)
    assert len({body["prompt"] for body in measured}) == len(measured), "every prompt is its own"


def test_a_refused_load_is_told_in_the_proxys_words(endpoint: Endpoint, script: Script) -> None:
    script.status = 400
    with pytest.raises(ServiceError) as caught:
        loadtest.run(endpoint, LoadRequest("tiny", concurrency=(1,)))
    assert caught.value.why == "HTTP 400: No."


def test_failed_requests_are_counted_and_named(endpoint: Endpoint, script: Script) -> None:
    request = LoadRequest("tiny", concurrency=(2,), input_len=20, output_len=5, least=2)
    script.end = "error"
    with pytest.raises(EwError) as caught:
        loadtest.run(endpoint, request)
    assert caught.value.code == "bench_failed"


def test_figures_of_a_level() -> None:
    timings = [Timing(0.1, 0.5, [0.1, 0.3], 7, 5), Timing(0.2, 1.0, [0.2], 9, 5), Timing(error="HTTP 503: x")]
    level = summarise(2, timings, 2.0)
    assert (level.requests, level.failed, level.errors) == (3, 1, ("HTTP 503: x",))
    assert level.tokens_per_second == 5.0
    assert level.ttft_p50 == 150.0
    assert level.itl_p50 == 200.0
    assert level.tpot_mean == 150.0
    assert level.input_tokens == 8.0


@pytest.mark.parametrize(("rank", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0)])
def test_percentiles(rank: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], rank) == expected
    assert percentile([], rank) is None


def test_a_plot_is_drawn_or_says_what_it_needs(tmp_path: Path) -> None:
    levels = [summarise(n, [Timing(0.1, 0.5, [0.1], 7, 5)], 2.0) for n in (1, 8)]
    target = tmp_path / "plots" / "bench.png"
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(EnvironmentProblem, match="matplotlib"):
            loadplot.draw(levels, "tiny", target)
        return
    loadplot.draw(levels, "tiny", target)
    assert target.read_bytes().startswith(b"\x89PNG")
