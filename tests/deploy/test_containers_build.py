"""Builds both targets of Dockerfile.triton and runs them locked down: slow, so not by default.

pytest -m slow tests/deploy/test_containers_build.py      # as root, with buildah and debootstrap
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scripts import container_build
from scripts.check_container import main


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["cpu", "triton"])
def test_builds_and_runs(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--target", target])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, [name for name, check in report["checks"].items() if not check["passed"]]
    assert report["figures"]["context_bytes"] < 4 << 20


def test_a_needle_across_two_reads_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_build, "CHUNK", 8)
    (tmp_path / "layers").write_bytes(b"0123456needle and so on")
    assert container_build.search(tmp_path / "layers", [b"needle", b"absent"]) == {b"needle"}


def test_changes_to_the_base_are_named(tmp_path: Path) -> None:
    for root in ("base", "image"):
        for name in ("usr/bin/python3", "usr/lib/a.so", "opt/b"):
            (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / name).write_text("same")
            os.utime(tmp_path / root / name, (1, 1))
        (tmp_path / root / "usr/bin/python").symlink_to("python3")
    assert container_build.changed_files(tmp_path / "base", tmp_path / "image") == []
    (tmp_path / "image/usr/bin/tini").write_text("new files are no change")
    (tmp_path / "image/usr/lib/a.so").write_text("another")
    (tmp_path / "image/opt/b").unlink()
    (tmp_path / "image/usr/bin/python").unlink()
    changed = container_build.changed_files(tmp_path / "base", tmp_path / "image")
    assert sorted(changed) == ["opt/b", "usr/bin/python", "usr/lib/a.so"]
