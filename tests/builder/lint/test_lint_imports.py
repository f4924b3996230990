"""--import-check: models are imported in a process of their own, and only when asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from builder.lint import Options, lint
from builder.lint.containers import container_of_tag
from builder.render import render
from common.config import parse_config
from common.errors import UsageError
from common.paths import SOURCE_ROOT, Home
from tests.builder.lint.mutating import found, mutate
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

MODEL = "m-preprocessing/1/model.py"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    home = Home(tmp_path)
    make_package(home.root / "m", byte_level())
    render(parse_config({"models": {"m": {"engine": "cpu", "model_path": "m"}}}), home)
    return home.repository


def failures(repository: Path) -> list[tuple[str, int, str]]:
    findings = lint(repository, Options(import_with=sys.executable))
    return [(f.file, f.line, f.message) for f in findings if f.rule.id == "EW410"]


def test_ews_models_import(repository: Path) -> None:
    assert lint(repository, Options(import_with=sys.executable)) == []


def test_an_import_that_fails_is_found_at_its_line(repository: Path) -> None:
    mutate(repository / MODEL, r"\nclass ", '\nLIMIT = int("many")\nclass ')
    line = (repository / MODEL).read_text().splitlines().index('LIMIT = int("many")') + 1
    assert lint(repository) == []
    ((file, at, message),) = failures(repository)
    assert (file, at) == (MODEL, line)
    assert message.startswith("ValueError: invalid literal")


def test_a_file_beside_the_model_is_named(repository: Path) -> None:
    mutate(
        repository / "m-preprocessing/1/prompts.py",
        r"\nWORD_START = ",
        "\nimport no_such_package_xyz\nWORD_START = ",
    )
    assert [(file, "no_such_package_xyz" in message) for file, _, message in failures(repository)] == [
        ("m-preprocessing/1/prompts.py", True)
    ]


@pytest.mark.parametrize("ending", ["import os; os._exit(3)", "raise SystemExit(3)"])
def test_a_model_that_ends_the_process_is_found(repository: Path, ending: str) -> None:
    mutate(repository / MODEL, r"\Z", f"{ending}\n")
    assert [file for file, _, _ in failures(repository)] == [MODEL]


def test_nothing_is_executed_unasked_and_secrets_stay_here(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EW_API_KEY", "secret")
    mark = tmp_path / "executed"
    code = f"import os; open({str(mark)!r}, 'w').write(os.environ.get('EW_API_KEY', 'nothing'))"
    mutate(repository / MODEL, r"\Z", f"{code}\n")
    assert lint(repository) == []
    assert not mark.exists()
    assert failures(repository) == []
    assert mark.read_text() == "nothing"


def test_a_python_that_is_not_there(repository: Path) -> None:
    assert ("EW410", MODEL) in found(repository, import_with="/no/such/python")


@pytest.mark.parametrize(
    ("tag", "version", "flavour"),
    [
        ("nvcr.io/nvidia/tritonserver:26.03-trtllm-python-py3", "1.2.0", "trtllm"),
        ("25.08-vllm-python-py3", "0.21.0", "vllm"),
        ("25.08-py3", "0.21.0", ""),
        ("26.02", "1.1.0", None),
    ],
)
def test_containers_by_tag(tag: str, version: str, flavour: str | None) -> None:
    release, found_flavour = container_of_tag(tag)
    assert (release.tensorrt_llm, found_flavour) == (version, flavour)


@pytest.mark.parametrize("tag", ["latest", "99.01-trtllm-python-py3", "trtllm", ""])
def test_unknown_containers_are_refused(tag: str) -> None:
    with pytest.raises(UsageError) as caught:
        container_of_tag(tag)
    assert caught.value.code == "unknown_container"


def test_command_line(repository: Path) -> None:
    mutate(repository / MODEL, r"\Z", "1 / 0\n")
    command = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), "lint", str(repository)]
    plain = subprocess.run([*command, "--container", "26.03"], capture_output=True, text=True, check=False)
    asked = subprocess.run([*command, "--import-check"], capture_output=True, text=True, check=False)
    assert (plain.returncode, asked.returncode) == (0, 1), plain.stderr + asked.stderr
    assert "ZeroDivisionError" in asked.stdout
    alone = subprocess.run([*command, "--python", "x"], capture_output=True, text=True, check=False)
    assert (alone.returncode, "--import-check" in alone.stderr) == (2, True)
