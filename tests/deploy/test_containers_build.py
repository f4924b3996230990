"""Builds both targets of Dockerfile.triton and runs them locked down: slow, so not by default.

pytest -m slow tests/deploy/test_containers_build.py      # as root, with buildah and debootstrap
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from scripts import container_build
from scripts.check_container import Report, build_secrets, check_configuration, check_secrets, main, plant

CANARY = "canary-77777777777777777777777777777777"
MISTAKES = {
    "a folder allowed too much": (".dockerignore", "**/*.pem\n", "", "no secret in any layer"),
    "a secret that a later step removes": (
        "Dockerfile.triton",
        "COPY --from=cpu-environment",
        "RUN --mount=type=secret,id=pip cp /run/secrets/pip /x\nRUN rm /x\nCOPY --from=cpu-environment",
        "no secret in any layer",
    ),
    "root": ("Dockerfile.triton", "USER 10001:10001", "USER 0:0", "numeric user that is not root"),
    "no init": ("Dockerfile.triton", '"/usr/bin/tini", "--", ', "", "an init is process 1"),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["cpu", "triton"])
def test_builds_and_runs(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--target", target])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, [name for name, check in report["checks"].items() if not check["passed"]]
    assert report["figures"]["context_bytes"] < 4 << 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str, tmp_path: Path) -> None:
    name, good, bad, found_by = MISTAKES[mistake]
    context = tmp_path / "context"
    container_build.copy_context(context)
    plant(context, CANARY)
    text = (context / name).read_text()
    assert good in text
    (context / name).write_text(text.replace(good, bad))
    base = container_build.make_base("cpu")
    secrets = build_secrets(tmp_path, CANARY)
    image = container_build.build("cpu", base, context, secrets, "localhost/ew:mistake")
    report = Report()
    check_configuration(image, report)
    check_secrets(image, CANARY, report)
    assert [check for check, result in report.checks.items() if not result["passed"]] == [found_by]


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
