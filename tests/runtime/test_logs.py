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
        "| Option | Value |\n"
        "hwloc/linux: failed to find sysfs cpu topology directory, aborting linux discovery.\n",
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


def test_a_view_of_one_model_has_its_records_whole_and_no_other_models(ew_home: Path) -> None:
    write(
        "worker",
        "2026-11-22 18:00:00,1 qwen-tensorrt_llm ERROR The engine did not start.\n"
        "Traceback (most recent call last):\n"
        "ValueError: bad\n"
        "2026-11-22 18:00:00,2 qwen2-tensorrt_llm INFO Ready\n"
        "2026-11-22 18:00:00,3 my.qwen INFO Ready\n",
    )
    write(
        "triton",
        'I1122 18:00:00.1 7 model_lifecycle.cc:472] "loading: qwen-tensorrt_llm:1"\n'
        'I1122 18:00:00.1 7 model_lifecycle.cc:472] "loading: qwen:1"\n'
        'I1122 18:00:00.1 7 model_lifecycle.cc:472] "loading: qwen2:1"\n',
    )
    view = logs.chosen("qwen", ["qwen", "qwen2"])
    assert view.tail("worker", 50) == [
        "2026-11-22 18:00:00,1 qwen-tensorrt_llm ERROR The engine did not start.",
        "Traceback (most recent call last):",
        "ValueError: bad",
    ]
    assert [line.split("loading: ")[1] for line in view.tail("triton", 50)] == [
        'qwen-tensorrt_llm:1"',
        'qwen:1"',
    ]
    assert view.tail("triton", 0) == []
    follower = view.follower()
    write("proxy", '{"modelId":"qwen2"}\n{"modelId":"qwen"}\n')
    assert list(follower.new_lines()) == [("proxy", '{"modelId":"qwen"}')]


def test_only_what_came_after_a_mark_is_read(ew_home: Path) -> None:
    write("triton", "E0101 of an earlier start\n")
    marks = logs.marks()
    write("triton", "E0101 of this start\n")
    assert logs.since("triton", marks) == ["E0101 of this start"]
    assert logs.since("worker", marks) == []


def test_a_log_that_is_a_device_stays_and_is_not_read(ew_home: Path) -> None:
    (ew_home / "logs").mkdir()
    logs.log_path("worker").symlink_to("/dev/full")
    logs.rotate()
    assert logs.log_path("worker").is_symlink()
    assert logs.tail("worker", 5) == logs.since("worker", {}) == []
    assert list(logs.Follower(("worker",), start_at_end=False).new_lines()) == []


def test_an_unknown_log_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        logs.chosen("nginx")
    assert "triton, worker, proxy" in caught.value.hint


def test_a_refused_option_is_the_trouble_and_not_the_usage_after_it() -> None:
    refused = "/opt/tritonserver/bin/tritonserver: unrecognized option '--nope=1'"
    usage = ["Usage: tritonserver [options]", "  --exit-on-error <boolean>", "\tExit if an error occurs."]
    assert logs.troubles_in([refused, *usage]) == [refused]
    assert logs.troubles_in(usage[2:]) == ["Exit if an error occurs."]
    other = ["error: unrecognized option 'x'", "error: out of memory"]
    assert logs.troubles_in(other) == other
