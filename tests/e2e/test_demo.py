"""`ew demo`: from the checkpoint to a streamed answer, with the steps that are done already skipped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from common.paths import SOURCE_ROOT
from runtime.demo_checkpoint import demo_checkpoint
from tests.e2e.conftest import Installation, free_port, left_behind

pytestmark = pytest.mark.e2e

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A home folder in which nothing was made yet; only the download is shared."""
    home = tmp_path_factory.mktemp("demo")
    checkpoint = demo_checkpoint()
    (home / ".cache").mkdir()
    (home / ".cache" / "demo").symlink_to(checkpoint.parent)
    made = Installation(home, free_port())
    yield made
    made.run("stop", "--drain", "1")


def demo(installation: Installation, *options: str) -> subprocess.CompletedProcess[str]:
    return installation.run("demo", "--port", str(installation.port), *options)


def test_once_answers_with_paris_and_leaves_nothing(fresh: Installation) -> None:
    done = demo(fresh, "--once", "--prompt", QUESTION)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    for step in ("converting", "rendering", "loading", "stopping"):
        assert step in done.stderr
    assert "tokens/s" in done.stderr
    assert fresh.status() == {"state": "stopped"}
    assert (fresh.home / "models" / "smollm2-135m-trt" / "ew.json").is_file()


def test_the_second_time_only_starts_and_the_third_only_asks(fresh: Installation) -> None:
    up = demo(fresh)
    assert up.returncode == 0, up.stderr
    assert "converting" not in up.stderr
    assert "loading" in up.stderr
    asked = demo(fresh, "--json", "--prompt", QUESTION)
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert "loading" not in asked.stderr
    assert "Paris" in answer["text"] and "Paris" in asked.stderr
    assert answer["finish_reason"] == "stop"
    assert answer["tokens"] == answer["usage"]["completion_tokens"] > 3
    assert answer["ttft"] > 0
    assert answer["text"] in up.stdout  # greedy: the same question, the same answer
    run_the_printed_curl_line(up.stdout)
    service_id = fresh.state()["service_id"]
    fresh.stop()
    assert left_behind(service_id) == []


def run_the_printed_curl_line(output: str) -> None:
    """What the demo prints can be pasted into a shell; here with a limit, as the small model does not end."""
    (line,) = [line.strip() for line in output.splitlines() if line.strip().startswith("curl ")]
    assert "/api/v1/inference/stream" in line and "你好" in line
    short = line.replace('"prompt"', '"maxTokens": 24, "prompt"')
    done = subprocess.run(["sh", "-c", short], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("data: [DONE]")
    assert "\ufffd" not in done.stdout


def test_a_model_that_is_not_there_is_named(fresh: Installation) -> None:
    done = demo(fresh, "--model", "./nowhere", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 4
    assert "nowhere" in error["message"]
    assert error["hint"]


def test_the_help_shows_the_documented_options() -> None:
    done = Installation(SOURCE_ROOT, 0).run("demo", "--help")
    for option in ("--model", "--prompt", "--once", "--json"):
        assert option in done.stdout
