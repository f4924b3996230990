"""The environment's life: missing, interrupted, broken, outdated, ready. Packages are a local wheel."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runtime import bootstrap


def make_wheel(folder: Path, name: str) -> Path:
    """The smallest package pip accepts: one module."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}.py", "value = 1\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose base layer is one local wheel."""
    (tmp_path / "requirements").mkdir()
    sizes = {"base": {"download": 1, "installed": 1}}
    (tmp_path / "requirements" / "sizes.json").write_text(json.dumps(sizes))
    wheel = make_wheel(tmp_path, "tinydependency")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = f"tinydependency @ {wheel.as_uri()} --hash=sha256:{digest}\n"
    (tmp_path / "requirements" / "base.lock").write_text(lock)
    monkeypatch.setattr(bootstrap, "ROOT", str(tmp_path))
    monkeypatch.setenv("EW_VENV", str(tmp_path / ".venv"))
    monkeypatch.setenv("EW_PYTHON", sys.executable)
    return tmp_path


def imports(python: str) -> bool:
    return subprocess.run([python, "-c", "import tinydependency"]).returncode == 0


def test_made_once_then_trusted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = bootstrap.ensure()
    assert imports(python)
    monkeypatch.setattr(bootstrap, "build_layer", lambda *_: pytest.fail("built a second time"))
    assert bootstrap.ensure() == python


def test_an_interrupted_install_is_completed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.ensure()
    assert bootstrap.missing_layers(str(root / ".venv"), ["base"]) == ["base"]
    assert imports(bootstrap.ensure())


def test_a_changed_lock_is_installed_again(root: Path) -> None:
    bootstrap.ensure()
    lock = root / "requirements" / "base.lock"
    lock.write_text(lock.read_text() + "# changed\n")
    assert bootstrap.missing_layers(str(root / ".venv"), ["base"]) == ["base"]
    bootstrap.ensure()
    assert bootstrap.missing_layers(str(root / ".venv"), ["base"]) == []


def test_a_broken_environment_is_rebuilt(root: Path) -> None:
    python = Path(bootstrap.ensure())
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert imports(bootstrap.ensure())


def test_a_wrong_digest_installs_nothing(root: Path) -> None:
    lock = root / "requirements" / "base.lock"
    lock.write_text(lock.read_text().replace("sha256:", "sha256:00", 1)[:-3] + "\n")
    with pytest.raises(bootstrap.BootstrapError):
        bootstrap.ensure()
    assert not imports(str(root / ".venv" / "bin" / "python"))


def test_a_full_disk_is_reported_before_anything_is_made(root: Path) -> None:
    sizes = {"base": {"download": 2**30, "installed": 2**30}}
    (root / "requirements" / "sizes.json").write_text(json.dumps(sizes))
    with pytest.raises(bootstrap.BootstrapError, match="MB free"):
        bootstrap.ensure()
    assert not os.path.exists(root / ".venv")


def test_a_folder_that_cannot_be_written_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    monkeypatch.setenv("EW_VENV", str(root / "file" / "venv"))
    with pytest.raises(bootstrap.BootstrapError) as caught:
        bootstrap.ensure()
    assert "Not a directory" in caught.value.what
    assert "EW_VENV" in caught.value.hint
