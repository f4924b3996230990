"""What people type while the service runs: infer, chat, bench, doctor."""

from __future__ import annotations

import json
import subprocess
import tarfile

import pytest

from tests.e2e.conftest import Installation, RunningService

pytestmark = pytest.mark.e2e


@pytest.fixture
def here(service: RunningService) -> Installation:
    """The command line of the running service's home."""
    return service.installation


def test_infer_streams_and_answers_whole_alike(here: Installation) -> None:
    arguments = ("infer", "--temperature", "0", "What is the capital of France?")
    streamed = here.run(*arguments)
    assert streamed.returncode == 0, streamed.stderr
    assert "Paris" in streamed.stdout
    assert "tokens/s" in streamed.stderr
    whole = json.loads(here.run(*arguments, "--json").stdout)
    assert whole["text"] + "\n" == streamed.stdout
    assert whole["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] > 0


def test_chat_keeps_the_conversation(here: Installation) -> None:
    done = subprocess.run(
        here.command("chat", "--max-tokens", "24", "--temperature", "0"),
        env=here.spawn_environment(),
        input="Hello\nWhat is the capital of France?\n/exit\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    receipts = [line for line in done.stderr.splitlines() if "tokens/s" in line]
    assert len(receipts) == 2


def test_chat_gives_one_document_of_all_turns(here: Installation) -> None:
    done = subprocess.run(
        here.command("chat", "--max-tokens", "4", "--temperature", "0", "--json"),
        env=here.spawn_environment(),
        input="Hello\nAgain\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    turns = json.loads(done.stdout)["turns"]
    assert [turn["prompt"] for turn in turns] == ["Hello", "Again"]
    assert all(turn["text"] and turn["usage"]["completion_tokens"] <= 4 for turn in turns)


def test_bench_reaches_the_lengths_it_was_asked_for(here: Installation) -> None:
    options = ("--concurrency", "2", "--input-len", "40", "--output-len", "8", "--tool", "own", "--json")
    done = here.run("bench", *options)
    assert done.returncode == 0, done.stderr
    (level,) = json.loads(done.stdout)["levels"]
    assert level["failed"] == 0
    assert level["output_tokens"] == 8.0
    assert abs(level["input_tokens"] - 40) <= 4
    assert 0 < level["ttft_p50"] <= level["ttft_p99"]


def test_doctor_finds_no_error_while_the_service_is_well(here: Installation) -> None:
    target = here.home / "report.tar.gz"
    done = here.run("doctor", "--offline", "--bundle", str(target), "--json")
    document = json.loads(done.stdout)
    assert document["facts"]["service"] == "ready"
    errors = [finding["id"] for finding in document["findings"] if finding["severity"] == "error"]
    # The cache, and with it the environments of whoever develops here, is shared with the checkout.
    assert [id for id in errors if not id.startswith("environment_")] == []
    key = (here.home / "run" / "api_key").read_bytes().strip()
    with tarfile.open(target) as archive:
        texts = [extracted.read() for member in archive if (extracted := archive.extractfile(member))]
    assert len(texts) > 5
    assert not [text for text in texts if key in text]


def test_what_the_proxy_refuses_in_a_request_is_wrong_usage(here: Installation) -> None:
    for arguments, code in (
        (("--model", "none"), "model_not_found"),
        (("--max-tokens", "1000000"), "max_tokens_too_large"),
        (("--no-stream", "--max-tokens", "1000000"), "max_tokens_too_large"),
    ):
        done = here.run("infer", *arguments, "Hello", "--json")
        assert done.returncode == 2, done.stderr
        assert json.loads(done.stdout)["error"]["code"] == code


def test_a_wrong_key_is_a_clear_refusal(here: Installation) -> None:
    done = here.run("infer", "Hello", EW_API_KEY="ew-wrong")
    assert done.returncode == 6
    assert "401" in done.stderr
