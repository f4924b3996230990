"""`ew test`: what it runs; the checks themselves are stood in for."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.cli.ew import ew


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The modules that are run, with their arguments; mypy fails."""
    made: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        made.append(command[2:])
        return subprocess.CompletedProcess(command, int("mypy" in command))

    monkeypatch.setattr(subprocess, "run", run)
    return made


def test_all_tests_run_in_two_processes(runs: list[list[str]]) -> None:
    assert ew("test", "--no-checks").code == 0
    (pytest_run,) = runs
    assert pytest_run[0] == "pytest"
    assert pytest_run[pytest_run.index("-n") + 1] == "2"


def test_chosen_tests_run_in_one(runs: list[list[str]]) -> None:
    assert ew("test", "--no-checks", "tests/builder", "-k", "llama").code == 0
    assert runs == [["pytest", "tests/builder", "-k", "llama"]]


def test_a_failed_check_fails_all_and_the_others_still_run(runs: list[list[str]]) -> None:
    answer = ew("test", "--json")
    assert answer.code == 1
    assert [run[0] for run in runs] == ["ruff", "ruff", "mypy", "pytest"]
    assert answer.document["passed"] is False
    assert [name for name, passed in answer.document["runs"].items() if not passed] == ["mypy"]
