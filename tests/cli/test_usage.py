"""Wrong command lines: one JSON document with --json, help for people, exit code 2 and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli import status
from cli.app import RESUMING, VERBS, main
from common.paths import SOURCE_ROOT
from tests.cli.ew import ew
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan"],
        ["plan", "--model", "x", "--tp-size", "two"],
        ["convert-trt"],
        ["package", "check", "x"],
        ["start"],
        ["demo", "--port", "0"],
        ["logs", "nothing"],
        ["nonsense"],
    ],
)
def test_with_json_a_wrong_command_line_is_one_document(arguments: list[str]) -> None:
    answer = ew(*arguments, "--json")
    assert answer.code == 2
    assert answer.err == ""
    assert answer.document["error"]["code"] == "usage"
    assert "--help" in answer.document["error"]["hint"]


def test_without_json_it_is_the_usage_line_and_the_problem_on_stderr() -> None:
    answer = ew("plan")
    assert (answer.code, answer.out) == (2, "")
    assert " plan [OPTIONS]" in answer.err
    assert "Missing option '--model'" in answer.err


def test_a_misspelt_verb_is_named_with_the_nearest() -> None:
    answer = ew("strat", "--model", "x")
    assert answer.code == 2
    assert "Did you mean 'start'?" in answer.err


def test_an_interrupt_exits_130_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "status", interrupt)
    answer = ew("status", "--json")
    assert answer.code == 130
    assert answer.document["error"]["code"] == "interrupted"
    assert answer.document["error"]["hint"] == "Run the same command again."


@pytest.mark.parametrize("verb", RESUMING)
def test_an_interrupted_verb_that_keeps_its_work_says_so(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "get_command", interrupt)
    assert "goes on where it stopped" in ew(verb, "--json").document["error"]["hint"]


@pytest.mark.parametrize(
    ("error", "exit_code", "name"),
    [
        (PermissionError(13, "Permission denied", "run/lock"), 8, "file_unusable"),
        (KeyError("x"), 1, "unknown"),
    ],
)
def test_what_a_verb_did_not_foresee_is_words_too(
    monkeypatch: pytest.MonkeyPatch, error: Exception, exit_code: int, name: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(status, "status", fail)
    answer = ew("status", "--json")
    assert answer.code == exit_code
    assert answer.document["error"]["code"] == name
    assert "Traceback" not in ew("status").err
    monkeypatch.setenv("EW_TRACEBACK", "1")
    with pytest.raises(type(error)):
        ew("status")


def test_help_and_version_exit_0() -> None:
    assert ew("--help").code == ew("--version").code == ew("plan", "--help").code == 0


def test_listing_says_that_there_is_nothing_or_no_folder() -> None:
    assert "No packages in" in ew("package", "list").out
    assert ew("package", "list", "--json").document == []
    assert ew("package", "list", "/nowhere", "--json").document["error"]["code"] == "package_missing"


def test_logs_before_the_first_start_say_so() -> None:
    assert "There are no logs" in ew("logs").err


def test_logs_are_one_document_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EW_HOME", str(tmp_path))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "proxy.log").write_text("one\ntwo\n")
    assert ew("logs", "proxy", "-n", "1", "--json").document == {"proxy": ["two"]}
    assert ew("logs", "-f", "--json").code == 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_speaks_json(verb: str) -> None:
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    parts = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    silent = [part.name for part in parts if "as_json" not in [parameter.name for parameter in part.params]]
    assert not silent


@pytest.mark.parametrize("name", ["", " ", "a\nb", " alice"])
def test_a_key_has_a_name_that_can_be_seen(name: str) -> None:
    assert ew("keys", "add", name, "--json").document["error"]["code"] == "usage"
    assert ew("keys", "list", "--json").document == {"keys": []}
    assert ew("keys", "add", "小明").code == 0


def test_packages_are_listed_by_short_names_and_damaged_ones_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_package(tmp_path / "models" / "whole", byte_level())
    (tmp_path / "models" / "spoilt").mkdir()
    (tmp_path / "models" / "spoilt" / "ew.json").write_text("{")
    listed = ew("package", "list", tmp_path / "models")
    assert listed.out.splitlines()[2].startswith("models/whole")
    assert "spoilt" not in listed.out
    assert "damaged: models/spoilt" in listed.err
    as_json = ew("package", "list", tmp_path / "models", "--json")
    assert [Path(row["package"]).name for row in as_json.document] == ["whole"]
    assert as_json.err == listed.err


def test_a_path_that_is_no_text_is_shown_where_the_output_is_strict() -> None:
    command = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), "plan", "--json", "--model"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONUTF8": "1"}
    done = subprocess.run([*command, b"/x/\xc4\xe3"], env=environment, capture_output=True, check=False)
    assert done.returncode == 4, done.stderr
    assert os.fsencode(json.loads(done.stdout)["error"]["message"]).count(b"/x/\xc4\xe3") == 1
