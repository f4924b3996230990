"""Seconds from `ew demo` to the first token of the answer, on a machine that is set up, and where they go.

    ./.venv/bin/python -m benchmarks.startup --repeat 5 [--json FILE]

Every run starts from nothing running and ends with `ew stop`. The package and the engine's graph are there,
as after the first demo; `EW_HOME` chooses the installation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks import machine
from common.paths import SOURCE_ROOT, home
from runtime.status import status

COMMAND_LINE = SOURCE_ROOT / "cli" / "__main__.py"
STAMP = re.compile(r"^I\d{4} (\d\d):(\d\d):(\d\d\.\d+)")
QUARTER = 900.0  # seconds; time zones differ by whole quarters of an hour


def ew(*arguments: str) -> list[str]:
    return [sys.executable, str(COMMAND_LINE), *arguments]


def one_start() -> dict[str, float]:
    """Seconds after the command began: of each milestone up to the first token."""
    began = time.time()
    first = time_of_first_text(
        subprocess.Popen(ew("demo"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    )
    milestones = {**milestones_of_triton(began), "first token": first - began, **processor_seconds()}
    subprocess.run(ew("stop"), check=True, capture_output=True)
    return milestones


def time_of_first_text(demo: subprocess.Popen[bytes]) -> float:
    """The demo prints an empty line, the prompt, then the answer as it comes."""
    assert demo.stdout is not None
    fd, seen = demo.stdout.fileno(), b""
    while seen.count(b"\n") < 2 or seen.endswith(b"\n"):
        chunk = os.read(fd, 4096)
        if not chunk:
            raise SystemExit("The demo gave no answer.")
        seen += chunk
    moment = time.time()
    demo.stdout.read()
    demo.wait()
    return moment


def processor_seconds() -> dict[str, float]:
    """What each part has computed so far: the same on a busy machine, unlike the seconds on the clock."""
    used: dict[str, float] = {}
    for process in status()["processes"]:
        times = psutil.Process(process["pid"]).cpu_times()
        name = "processor: " + process["role"].split()[0]
        used[name] = used.get(name, 0.0) + times.user + times.system
    return used


def milestones_of_triton(began: float) -> dict[str, float]:
    """From tritonserver's own log."""
    lines = (home().logs / "triton.log").read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = {
        "tritonserver loads": "loading: ",
        "preprocessing loaded": "-preprocessing'\"",
        "engine loaded": "successfully loaded 'smollm2-135m-trt-tensorrt_llm'",
        "tritonserver ready": "Started HTTPService",
    }
    return {name: seconds_after(began, first_line(lines, mark)) for name, mark in wanted.items()}


def first_line(lines: list[str], mark: str) -> str:
    return next(line for line in lines if mark in line and STAMP.match(line))


def seconds_after(began: float, line: str) -> float:
    """The line's time of day against `began`, in whatever time zone; a start takes less than QUARTER."""
    match = STAMP.match(line)
    assert match is not None
    time_of_day = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    return (time_of_day - began) % QUARTER


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    subprocess.run(ew("demo", "--once"), check=True, capture_output=True)
    runs = [one_start() for _ in range(options.repeat)]
    medians = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    result = {"machine": machine.describe(), "load": os.getloadavg(), "runs": len(runs), "seconds": medians}
    for name, seconds in medians.items():
        print(f"{seconds:7.2f} s  {name}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
