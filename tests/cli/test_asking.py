"""infer, chat and bench on a scripted endpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from cli.app import main
from common.paths import SOURCE_ROOT
from runtime.client import KEY_VARIABLE, Endpoint
from tests.cli.ew import ew
from tests.runtime.fake_proxy import KEY, Script, fake_proxy


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture(autouse=True)
def endpoint(script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with fake_proxy(script) as found:
        yield found


def test_infer_streams_to_stdout_and_its_receipt_to_stderr(endpoint: Endpoint, script: Script) -> None:
    answer = ew("infer", "--url", endpoint.url, "--max-tokens", 5, "--stop", "x", "Capital of France?")
    assert (answer.code, answer.out) == (0, "Paris\n")
    assert "tokens/s" in answer.err
    assert script.bodies == [
        {"modelId": "tiny", "prompt": "Capital of France?", "maxTokens": 5, "stop": ["x"]}
    ]


def test_infer_with_json_is_one_document(endpoint: Endpoint, script: Script) -> None:
    document = ew("infer", "--url", endpoint.url, "--system", "Be brief.", "--json", "Hi").document
    assert document["text"] == "Paris"
    assert document["finish_reason"] == "stop"
    assert [message["role"] for message in script.bodies[0]["messages"]] == ["system", "user"]


def test_infer_reads_the_prompt_from_stdin(endpoint: Endpoint, script: Script) -> None:
    result = CliRunner().invoke(main, ["infer", "--url", endpoint.url, "--raw", "-"], input="from a pipe")
    assert result.exit_code == 0
    assert script.bodies[0]["prompt"] == "from a pipe"
    assert script.bodies[0]["raw"] is True


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
@pytest.mark.parametrize("verb", ["infer", "chat"])
def test_a_prompt_of_another_encoding_is_refused(endpoint: Endpoint, verb: str, encoding: str) -> None:
    done = run_piped(verb, endpoint, "你好\n".encode("gbk"), encoding)
    assert "not text in this terminal's encoding" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


def test_a_terminal_that_lacks_a_character_shows_the_rest(endpoint: Endpoint, script: Script) -> None:
    script.pieces = ["你好", "😀", "！"]
    done = run_piped("infer", endpoint, "问".encode("gbk"), "gbk")
    assert done.stdout.decode("gbk") == "你好?！\n"
    assert script.bodies[0]["prompt"] == "问"


def run_piped(
    verb: str, endpoint: Endpoint, prompt: bytes, encoding: str
) -> subprocess.CompletedProcess[bytes]:
    """The verb as a process of its own, with streams of that encoding."""
    return subprocess.run(
        [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), verb, "--url", endpoint.url],
        input=prompt,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        cwd=SOURCE_ROOT,
        capture_output=True,
        check=False,
    )


def test_infer_without_a_service_says_how_to_start_one() -> None:
    answer = ew("infer", "Hi")
    assert answer.code == 6
    assert "./ew start" in answer.err


def test_a_broken_stream_ends_with_an_error_code(endpoint: Endpoint, script: Script) -> None:
    script.end = "cut"
    answer = ew("infer", "--url", endpoint.url, "Hi")
    assert answer.code == 6
    assert "before its end" in answer.err


def test_chat_sends_the_whole_conversation_until_it_is_reset(endpoint: Endpoint, script: Script) -> None:
    turns = "one\ntwo\n/reset\nthree\n/exit\nnever\n"
    result = CliRunner().invoke(main, ["chat", "--url", endpoint.url], input=turns)
    assert result.exit_code == 0
    asked = [[message["content"] for message in body["messages"]] for body in script.bodies]
    assert asked == [["one"], ["one", "Paris", "two"], ["three"]]


def test_a_mistyped_command_of_chat_is_not_sent(endpoint: Endpoint, script: Script) -> None:
    turns = "/exti\n//exti\n /exit\n //x\n/etc/hosts\n// a comment\n/exit now\n"
    result = CliRunner().invoke(main, ["chat", "--url", endpoint.url], input=turns)
    assert result.exit_code == 0
    assert "/exti is no command" in result.stderr
    sent = [body["messages"][-1]["content"] for body in script.bodies]
    assert sent == ["/exti", "/exit", "//x", "/etc/hosts", "// a comment", "/exit now"]


def test_a_failed_turn_is_said_and_forgotten(endpoint: Endpoint, script: Script) -> None:
    script.end = "error"
    result = CliRunner().invoke(main, ["chat", "--url", endpoint.url], input="one\ntwo\n")
    assert result.exit_code == 0
    assert "The engine failed." in result.stderr
    assert [len(body["messages"]) for body in script.bodies] == [1, 1]


def test_bench_prints_a_row_for_each_level(endpoint: Endpoint) -> None:
    answer = ew("bench", "--url", endpoint.url, "--concurrency", "1,2", "--input-len", 8, "--output-len", 3)
    assert answer.code == 0
    assert [line.split()[0] for line in answer.out.splitlines()] == ["at", "1", "2"]


def test_bench_json_has_every_figure(endpoint: Endpoint) -> None:
    answer = ew("bench", "--url", endpoint.url, "--concurrency", "1", "--output-len", 3, "--json")
    (level,) = answer.document["levels"]
    assert level["failed"] == 0
    assert level["tokens_per_second"] > 0


@pytest.mark.parametrize("as_json", [True, False])
def test_an_interrupted_bench_shows_what_it_measured(
    endpoint: Endpoint, script: Script, as_json: bool
) -> None:
    script.answered = 2 + 8  # to find the prompt's length, then the first level
    command = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), "bench", "--tool", "own"]
    command += ["--url", endpoint.url, "--concurrency", "1,2", "--input-len", "8", "--output-len", "3"]
    process = subprocess.Popen(
        [*command, *(["--json"] if as_json else [])],
        env={**os.environ, KEY_VARIABLE: KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job ignores the interrupt, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith("2 at once"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    if as_json:
        document = json.loads(out)
        assert [level["concurrency"] for level in document["levels"]] == [1]
        assert document["error"]["code"] == "interrupted"
    else:
        assert [line.split()[0] for line in out.splitlines()] == ["at", "1"]
        assert "Interrupted" in err


@pytest.mark.parametrize("levels", ["0", "a", "1,,2", "-1"])
def test_bench_refuses_bad_levels(endpoint: Endpoint, levels: str) -> None:
    assert ew("bench", "--url", endpoint.url, f"--concurrency={levels}").code == 2
