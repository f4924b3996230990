from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.convert import CASES, Shape, make_model, run_case
from builder.sources import Source

SMALL = Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=96, vocab=100)


def test_benchmark_model_is_whole_and_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sync", lambda: None)
    folder = tmp_path / "model"
    folder.mkdir()
    total = make_model(folder, SMALL)
    source = Source(folder)
    assert total == sum(source.info(name).nbytes for name in source)
    for name in ("cp -r", "tp 4, to float16"):
        run = run_case(next(case for case in CASES if case.name == name), folder, tmp_path / "output")
        assert 0 < run.inside_s <= run.wall_s
        assert run.peak_mib > 1
    assert not (tmp_path / "output").exists()
