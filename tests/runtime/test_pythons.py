"""Finding a Python: real interpreters where there are some, fake ones for what this machine lacks."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from runtime import bootstrap, pythons


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def fake_python(path: Path, version: str, *, venv: bool = True, libdir: str = "/nowhere") -> str:
    facts = (
        f'{{"version": [{version}], "executable": "{path}", "prefix": "/nowhere", '
        f'"libdir": "{libdir}", "multiarch": "", "venv": {str(venv).lower()}}}'
    )
    return script(path, f"echo '{facts}'")


def test_the_running_python_is_found_with_its_library() -> None:
    found = pythons.inspect_python(sys.executable)
    assert found is not None
    assert found.version == sys.version_info[:2]
    assert (Path(found.library) / pythons.library_name(found.version)).is_file()


@pytest.mark.parametrize("body", ["exit 127", "echo not json", "echo '[]'; exit 1"])
def test_a_command_that_is_no_python_is_passed_over(tmp_path: Path, body: str) -> None:
    assert pythons.inspect_python(script(tmp_path / "python3", body)) is None
    assert pythons.inspect_python(str(tmp_path / "absent")) is None


def test_the_library_is_searched_in_the_folders_given(tmp_path: Path) -> None:
    (tmp_path / "libpython3.99.so.1.0").touch()
    assert pythons.find_library((3, 99), ["", str(tmp_path)]) == str(tmp_path)
    assert pythons.find_library((3, 98), [str(tmp_path)]) == ""


def test_no_supported_python_says_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EW_PYTHON", fake_python(tmp_path / "python", "3, 13"))
    with pytest.raises(bootstrap.BootstrapError) as caught:
        bootstrap.choose_python()
    assert "Python 3.13" in caught.value.what
    assert "EW_PYTHON" in caught.value.hint


def test_a_python_without_its_library_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pythons, "_loader_cache", list)
    monkeypatch.setenv("EW_PYTHON", fake_python(tmp_path / "python", "3, 12"))
    with pytest.raises(bootstrap.BootstrapError) as caught:
        bootstrap.choose_python()
    assert "libpython3.12.so.1.0" in caught.value.what
    assert "apt install libpython3.12" in caught.value.hint


def test_a_python_without_venv_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libpython3.11.so.1.0").touch()
    fake = fake_python(tmp_path / "python", "3, 11", venv=False, libdir=str(tmp_path))
    monkeypatch.setenv("EW_PYTHON", fake)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(bootstrap.BootstrapError) as caught:
        bootstrap.choose_python()
    assert "python3.11-venv" in caught.value.hint


def test_a_shim_that_starts_nothing_does_not_hide_a_good_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = script(tmp_path / "python3.12", "exit 127")
    monkeypatch.setattr(pythons, "candidates", lambda: [shim, sys.executable])
    assert bootstrap.choose_python().version == sys.version_info[:2]
