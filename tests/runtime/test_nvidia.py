"""The driver's answers, recorded, come out as GPUs; its failures as reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import nvidia

BANNER = """
| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 13.0     |
"""
ROWS = """0, NVIDIA H100 80GB HBM3, 81559, 80994, 9.0, 580.95.05
1, NVIDIA H100 80GB HBM3, 81559, 1204, 9.0, 580.95.05
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder alone on the path, for a fake nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_smi(folder: Path, rows: str, *, code: int = 0) -> None:
    script = folder / "nvidia-smi"
    answer = f"/bin/cat <<'X'\n{rows}X\nexit {code}"
    script.write_text(f"#!/bin/sh\nif [ $# -gt 0 ]; then {answer}; fi\n/bin/cat <<'X'\n{BANNER}X\n")
    script.chmod(0o755)


def test_gpus_and_versions_are_read(smi: Path) -> None:
    write_smi(smi, ROWS)
    seen = nvidia.inspect()
    assert (seen.driver, seen.cuda) == ("580.95.05", "13.0")
    assert [gpu.index for gpu in seen.gpus] == [0, 1]
    assert seen.gpus[1].free == 1204 * 2**20
    assert seen.gpus[0].capability == "9.0"


def test_values_that_the_driver_does_not_know_are_none(smi: Path) -> None:
    write_smi(smi, "0, Tesla K80, 11441, [N/A], [Not Supported], 470.57.02\n")
    gpu = nvidia.inspect().gpus[0]
    assert gpu.capability is None
    assert gpu.free == 0


def test_a_driver_that_fails_says_why(smi: Path) -> None:
    write_smi(smi, "Failed to initialize NVML: Driver/library version mismatch\n", code=18)
    seen = nvidia.inspect()
    assert seen.gpus == ()
    assert "version mismatch" in seen.problem


def test_without_a_driver_there_is_a_reason(smi: Path) -> None:
    assert "not on the path" in nvidia.inspect().problem


@pytest.mark.parametrize(
    ("driver", "cuda", "runs"),
    [
        ("580.65.06", "13.1.0.036", True),
        ("575.57.08", "13.0", False),
        ("525.60.13", "12.9", True),
        ("470.57.02", "12.3", False),
    ],
)
def test_a_driver_runs_every_minor_version_of_its_cuda(driver: str, cuda: str, runs: bool) -> None:
    assert nvidia.driver_runs(driver, cuda) is runs


def test_memory_of_a_process_is_summed_over_its_gpus(smi: Path) -> None:
    assert nvidia.memory_by_process() == {}
    write_smi(smi, "4711, 20480\n4712, 300\n4711, 20482\n[N/A], 5\n")
    assert nvidia.memory_by_process() == {4711: 40962 * 2**20, 4712: 300 * 2**20}
    write_smi(smi, "Unable to determine the device handle\n", code=9)
    assert nvidia.memory_by_process() == {}
