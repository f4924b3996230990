"""Logs: rotation, tails, following, and the lines that name a cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ResourceError, UsageError
from runtime import logs


def write(name: str, text: str) -> None:
    logs.log_path(name).parent.mkdir(parents=True, exist_ok=True)
    with logs.log_path(name).open("a", encoding="utf-8") as file:
        file.write(text)


def test_each_start_begins_new_logs_and_keeps_the_last_runs(ew_home: Path) -> None:
    for run in range(5):
        logs.rotate()
        write("triton", f"run {run}\n")
    kept = [logs.log_path("triton"), *(ew_home / "logs" / f"triton.log.{number}" for number in (1, 2, 3))]
    assert [path.read_text() for path in kept] == ["run 4\n", "run 3\n", "run 2\n", "run 1\n"]
    assert not (ew_home / "logs" / "triton.log.4").exists()


def test_a_folder_that_cannot_be_written_is_named(ew_home: Path) -> None:
    (ew_home / "logs").write_text("a file in the way")
    with pytest.raises(ResourceError) as caught:
        logs.rotate()
    assert str(ew_home / "logs") in caught.value.what


def test_tail_of_a_log_that_is_not_there_is_empty(ew_home: Path) -> None:
    assert logs.tail("proxy", 10) == []


def test_troubles_are_the_lines_that_name_a_cause(ew_home: Path) -> None:
    write(
        "triton",
        "I1122 15:23:59.3 1 server.cc:631] banner\n"
        "E1122 15:23:57.3 1 pinned_memory_manager.cc] CudaDriverHelper has not been initialized.\n"
        "E1122 15:23:59.9 1 model_lifecycle.cc] failed to load 'm' version 1\n"
        "error: creating server: Internal - failed to load all models\n"
        "| Option | Value |\n",
    )
    found = logs.troubles("triton")
    assert [line[:5] for line in found] == ["E1122", "error"]
    assert "CudaDriverHelper" not in "".join(found)


def test_following_sees_new_lines_whole_and_survives_rotation(ew_home: Path) -> None:
    write("worker", "old\n")
    follower = logs.Follower(("worker",))
    assert list(follower.new_lines()) == []
    write("worker", "first\nsec")
    assert list(follower.new_lines()) == [("worker", "first")]
    write("worker", "ond 你好\n")
    assert list(follower.new_lines()) == [("worker", "second 你好")]
    logs.rotate()
    write("worker", "new run\n")
    assert list(follower.new_lines()) == [("worker", "new run")]


def test_an_unknown_log_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        logs.chosen("nginx")
    assert "triton, worker, proxy" in caught.value.hint
