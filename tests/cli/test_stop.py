"""`ew stop --model`: what it says of the worker that ended."""

from __future__ import annotations

import pytest

from runtime import loading
from runtime.loading import LoadReport
from tests.cli.ew import ew

MIB = 2**20


@pytest.mark.parametrize(
    ("workers", "memory", "gpu_memory", "text"),
    [
        (0, 0, 0, "m is unloaded; no worker of it was seen."),
        (1, 0, 0, "Unloaded m; its worker ended."),
        (1, 0, 5 * MIB, "Unloaded m; its worker ended and gave back 5 MiB of GPU memory."),
        (1, 7 * MIB, 0, "Unloaded m; its worker ended and gave back 7 MiB."),
        (1, 7 * MIB, 5 * MIB, "Unloaded m; its worker ended and gave back 7 MiB and 5 MiB of GPU memory."),
    ],
)
def test_a_worker_that_ran_is_told_also_where_its_memory_is_unknown(
    monkeypatch: pytest.MonkeyPatch, workers: int, memory: int, gpu_memory: int, text: str
) -> None:
    report = LoadReport("m", "unloaded", 0.1, workers, memory, gpu_memory)
    monkeypatch.setattr(loading, "unload", lambda model, drain: report)
    assert ew("stop", "--model", "m").out.splitlines()[-1] == text
    assert ew("stop", "--model", "m", "--json").document["workers"] == workers
