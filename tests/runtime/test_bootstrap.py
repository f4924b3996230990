"""The environment's life: missing, interrupted, broken, outdated, ready. Packages are a local wheel."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
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


def make_root(folder: Path) -> Path:
    """A checkout whose base layer is one local wheel."""
    (folder / "requirements").mkdir()
    sizes = {"base": {"download": 1, "installed": 1}}
    (folder / "requirements" / "sizes.json").write_text(json.dumps(sizes))
    wheel = make_wheel(folder, "tinydependency")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = f"tinydependency @ {wheel.as_uri()} --hash=sha256:{digest}\n"
    (folder / "requirements" / "base.lock").write_text(lock)
    return folder


def use(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bootstrap, "ROOT", str(root))
    monkeypatch.setenv("EW_VENV", str(root / ".venv"))
    monkeypatch.setenv("EW_PYTHON", sys.executable)
    return root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without an environment."""
    return use(make_root(tmp_path), monkeypatch)


@pytest.fixture(scope="module")
def interrupted_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose environment was made, when Ctrl-C came before its packages."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        root = use(make_root(tmp_path_factory.mktemp("interrupted")), patch)
        patch.setattr(bootstrap, "install", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.ensure()
    return root


@pytest.fixture
def interrupted(interrupted_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use(shutil.copytree(interrupted_root, tmp_path / "copy", symlinks=True), monkeypatch)


@pytest.fixture(scope="module")
def made_root(interrupted_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "copy"
    with pytest.MonkeyPatch.context() as patch:
        use(shutil.copytree(interrupted_root, folder, symlinks=True), patch)
        bootstrap.ensure()
    return folder


@pytest.fixture
def made(made_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an environment; a test that spoils it must mend it."""
    return use(made_root, monkeypatch)


def imports(python: str) -> bool:
    return subprocess.run([python, "-c", "import tinydependency"]).returncode == 0


def test_made_once_then_trusted(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "build_layer", lambda *_: pytest.fail("built a second time"))
    python = bootstrap.ensure()
    assert python == str(made / ".venv" / "bin" / "python")
    assert imports(python)


def test_an_interrupted_install_is_completed(interrupted: Path) -> None:
    folder = str(interrupted / ".venv")
    assert bootstrap.missing_layers(folder, ["base"]) == ["base"]
    assert imports(bootstrap.ensure())
    assert bootstrap.missing_layers(folder, ["base"]) == []


def test_a_changed_lock_is_installed_again(made: Path) -> None:
    lock = made / "requirements" / "base.lock"
    assert bootstrap.missing_layers(str(made / ".venv"), ["base"]) == []
    lock.write_text(lock.read_text() + "# changed\n")
    assert bootstrap.missing_layers(str(made / ".venv"), ["base"]) == ["base"]
    bootstrap.ensure()
    assert bootstrap.missing_layers(str(made / ".venv"), ["base"]) == []


def test_a_broken_environment_is_rebuilt(made: Path) -> None:
    python = made / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert imports(bootstrap.ensure())


def test_a_wrong_digest_installs_nothing(interrupted: Path) -> None:
    lock = interrupted / "requirements" / "base.lock"
    lock.write_text(lock.read_text().replace("sha256:", "sha256:00", 1)[:-3] + "\n")
    with pytest.raises(bootstrap.BootstrapError, match="Installing"):
        bootstrap.ensure()
    assert not imports(str(interrupted / ".venv" / "bin" / "python"))


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
