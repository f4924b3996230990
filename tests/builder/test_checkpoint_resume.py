"""Interruptions: what is left can be resumed, and never looks finished."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from builder import journal, shard, writer
from builder.checkpoint import write_checkpoint
from builder.families import Layout
from common.errors import CheckpointError, ResourceError
from tests.builder.golden import GOLDEN, described

SOURCE = GOLDEN / "llama-sharded" / "hf"
EXPECTED = json.loads((GOLDEN / "llama-sharded" / "tp2pp1" / "tensors.json").read_text())
LAYOUT = Layout(tp_size=2)
ROOT = Path(__file__).resolve().parent.parent.parent
SLOW_CONVERSION = """
import sys, time
from pathlib import Path
from builder import journal, shard, writer
from builder.checkpoint import write_checkpoint
from builder.families import Layout
shard.STEP_BYTES = 4096
write = writer.write_at
def slow(*arguments):
    time.sleep(0.002)
    write(*arguments)
writer.write_at = slow
print("ready", flush=True)
write_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), Layout(tp_size=2))
"""


class Stop(Exception):
    """Raised from the progress callback."""


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "STEP_BYTES", 4096)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def interrupt(output: Path, share: float, **arguments: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise Stop

    with pytest.raises(Stop):
        write_checkpoint(SOURCE, output, LAYOUT, progress=stop, **arguments)


def assert_equal_to_upstream(output: Path) -> None:
    assert {name: described(output / name) for name in EXPECTED} == EXPECTED
    assert sorted(path.name for path in output.iterdir()) == ["config.json", *sorted(EXPECTED)]


def test_interrupted_output_does_not_look_finished(output: Path) -> None:
    interrupt(output, 0.5)
    assert [path.name for path in output.iterdir()] == [writer.PARTIAL]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_resumed_conversion_reuses_and_equals_upstream(output: Path, share: float) -> None:
    interrupt(output, share)
    report = write_checkpoint(SOURCE, output, LAYOUT, digests=True)
    assert len(report.taken_sha256) == 2
    assert report.reused_bytes > share * report.nbytes
    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in report.files} == report.sha256
    assert_equal_to_upstream(output)


def test_many_interruptions(output: Path) -> None:
    for share in (0.2, 0.4, 0.6, 0.8):
        interrupt(output, share, workers=3)
    assert write_checkpoint(SOURCE, output, LAYOUT).reused_bytes > 0
    assert_equal_to_upstream(output)


def test_no_resume_starts_over(output: Path) -> None:
    interrupt(output, 0.5)
    assert write_checkpoint(SOURCE, output, LAYOUT, resume=False).reused_bytes == 0
    assert_equal_to_upstream(output)


def test_another_layout_starts_over(output: Path) -> None:
    interrupt(output, 0.5)
    report = write_checkpoint(SOURCE, output, Layout(tp_size=4))
    assert report.reused_bytes == 0
    expected = json.loads((GOLDEN / "llama-sharded" / "tp4pp1" / "tensors.json").read_text())
    assert {name: described(output / name) for name in expected} == expected


def test_after_a_reboot_the_journal_is_not_trusted(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(output, 0.5)
    monkeypatch.setattr(journal, "_boot_id", lambda: "another boot")
    assert write_checkpoint(SOURCE, output, LAYOUT).reused_bytes == 0
    assert_equal_to_upstream(output)


def test_torn_journal_line_does_not_count(output: Path) -> None:
    interrupt(output, 0.5)
    path = output / writer.PARTIAL / "journal"
    path.write_bytes(path.read_bytes() + b"99")
    write_checkpoint(SOURCE, output, LAYOUT)
    assert_equal_to_upstream(output)


def test_missing_partial_file_starts_over(output: Path) -> None:
    interrupt(output, 0.5)
    (output / writer.PARTIAL / "rank1.safetensors").unlink()
    assert write_checkpoint(SOURCE, output, LAYOUT).reused_bytes == 0
    assert_equal_to_upstream(output)


def test_second_conversion_into_the_same_folder_is_refused(output: Path) -> None:
    def convert_again(done: int, total: int) -> None:
        with pytest.raises(ResourceError, match="Another conversion"):
            write_checkpoint(SOURCE, output, LAYOUT)

    write_checkpoint(SOURCE, output, LAYOUT, progress=convert_again)
    assert_equal_to_upstream(output)


def test_files_of_a_larger_layout_go(output: Path) -> None:
    write_checkpoint(SOURCE, output, Layout(tp_size=4))
    write_checkpoint(SOURCE, output, LAYOUT)
    assert_equal_to_upstream(output)


def test_progress_grows_to_the_total(output: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = write_checkpoint(SOURCE, output, LAYOUT, progress=lambda *numbers: seen.append(numbers))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (report.nbytes, report.nbytes)
    assert sum((output / name).stat().st_size for name in EXPECTED) == report.nbytes


def test_kill_at_random_moments(output: Path) -> None:
    moments = random.Random(0)
    command = [sys.executable, "-c", SLOW_CONVERSION, str(SOURCE), str(output)]
    for _ in range(6):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        if (output / "config.json").exists():
            assert_equal_to_upstream(output)
    write_checkpoint(SOURCE, output, LAYOUT)
    assert_equal_to_upstream(output)


def test_what_a_killed_writer_left_beside_the_config_goes(output: Path) -> None:
    output.mkdir()
    (output / ".config.json.x1y2z3").write_text("{")
    write_checkpoint(SOURCE, output, LAYOUT)
    assert_equal_to_upstream(output)


def test_full_disk_in_the_middle_can_be_resumed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pwrite, iter(range(10_000))

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if next(calls) > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ResourceError, match="cannot be written") as caught:
            write_checkpoint(SOURCE, output, LAYOUT)
    assert caught.value.code == "disk_full"
    assert not (output / "config.json").exists()
    assert write_checkpoint(SOURCE, output, LAYOUT).reused_bytes > 0
    assert_equal_to_upstream(output)


def test_too_small_disk_is_noticed_before_writing(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(output.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="GB more") as caught:
        write_checkpoint(SOURCE, output, LAYOUT)
    assert caught.value.code == "disk_full"


def test_output_that_is_a_file_is_a_resource_error(output: Path) -> None:
    output.write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        write_checkpoint(SOURCE, output, LAYOUT)


@pytest.mark.parametrize(("tp_size", "part"), [(3, "8 attention heads"), (16, "8 attention heads")])
def test_nothing_is_written_for_an_impossible_layout(output: Path, tp_size: int, part: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(SOURCE, output, Layout(tp_size=tp_size))
    assert part in caught.value.why
    assert not output.exists()
