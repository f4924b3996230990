"""Builds both targets of Dockerfile.triton and runs them locked down. Minutes and gigabytes: not by default.

pytest -m slow tests/deploy/test_containers_build.py      # as root, with buildah and debootstrap
"""

from __future__ import annotations

import json

import pytest

from scripts.check_container import main


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["cpu", "triton"])
def test_builds_and_runs(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--target", target])
    report = json.loads(capsys.readouterr().out)
    assert code == 0, [name for name, check in report["checks"].items() if not check["passed"]]
    assert report["figures"]["context_bytes"] < 4 << 20
