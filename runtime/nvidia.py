"""What nvidia-smi says: driver and GPUs. Machines without it simply have none."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

MIB = 2**20
FIELDS = ("index", "name", "memory.total", "memory.free", "compute_cap", "driver_version")
# The oldest driver branch that runs programs of a CUDA major version (CUDA minor version compatibility).
OLDEST_DRIVER = {12: (525,), 13: (580,)}
SECONDS = 20


@dataclass(frozen=True)
class Gpu:
    """One GPU; memory in bytes, `capability` as "9.0"; None where the driver does not say."""

    index: int
    name: str
    memory: int
    free: int
    capability: str | None


@dataclass(frozen=True)
class Nvidia:
    """The driver ("580.95.05"), its newest CUDA version ("13.0"), the GPUs, or why there are none."""

    driver: str | None = None
    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


def inspect() -> Nvidia:
    """Ask nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Nvidia(problem="nvidia-smi is not on the path: no NVIDIA driver is installed.")
    listing = _ask([program, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"])
    if listing.returncode != 0:
        return Nvidia(problem=_first_line(listing.stdout + listing.stderr) or "nvidia-smi failed.")
    rows = [[field.strip() for field in line.split(",")] for line in listing.stdout.splitlines()]
    rows = [row for row in rows if len(row) == len(FIELDS) and row[0].isdigit()]
    if not rows:
        return Nvidia(problem="nvidia-smi shows no GPU.")
    banner = _ask([program]).stdout
    return Nvidia(rows[0][5], parse_cuda(banner), tuple(_gpu(row) for row in rows))


def memory_by_process() -> dict[int, int]:
    """GPU memory in bytes by process id; empty without a GPU, and where the driver hides other processes."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    listing = _ask([program, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"])
    used: dict[int, int] = {}
    for line in listing.stdout.splitlines() if listing.returncode == 0 else ():
        pid, _, memory = (part.strip() for part in line.partition(","))
        if pid.isdigit():  # a process on several GPUs has a line for each
            used[int(pid)] = used.get(int(pid), 0) + _bytes(memory)
    return used


def parse_cuda(banner: str) -> str | None:
    """The "CUDA Version: 13.0" of nvidia-smi's banner."""
    match = re.search(r"CUDA Version:\s*(\d+\.\d+)", banner)
    return match[1] if match else None


def numbers(version: str) -> tuple[int, ...]:
    """ "580.95.05" -> (580, 95, 5)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def driver_runs(driver: str, cuda: str) -> bool:
    """Whether a driver runs programs built with a CUDA version, without a compatibility package."""
    return numbers(driver) >= OLDEST_DRIVER.get(numbers(cuda)[0], (0,))


def oldest_driver(cuda: str) -> str:
    return ".".join(map(str, OLDEST_DRIVER.get(numbers(cuda)[0], ()))) or "unknown"


def _ask(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]}: {error}")


def _gpu(row: list[str]) -> Gpu:
    capability = row[4] if re.fullmatch(r"\d+\.\d+", row[4]) else None
    return Gpu(int(row[0]), row[1], _bytes(row[2]), _bytes(row[3]), capability)


def _bytes(mebibytes: str) -> int:
    return int(mebibytes) * MIB if mebibytes.isdigit() else 0


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
