"""The figures of the whole path on one machine, cpu engine, demo model.

    .venv/bin/python -m benchmarks.skeleton [--repeat 3] [--json FILE]

Measures `./ew --help`, `convert-trt` of the demo model (seconds, peak memory), seconds from `./ew demo` to
the first token on a machine that is set up, and tokens/s at 1 and 8 streams through the whole stack.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from benchmarks.machine import describe
from common.paths import SOURCE_ROOT
from runtime.demo import DEMO_MODEL
from runtime.demo_checkpoint import demo_checkpoint

EW = str(SOURCE_ROOT / "ew")
NEW_TOKENS = 128
PORT = 8097


def run(arguments: list[str], home: Path) -> tuple[float, int, str]:
    """Wall seconds, peak RSS in MiB of the largest child so far, and stdout."""
    began = time.monotonic()
    environment = {**os.environ, "EW_HOME": str(home)}
    done = subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return time.monotonic() - began, peak // 1024, done.stdout


def help_seconds(home: Path, repeat: int) -> float:
    run([EW, "--help"], home)
    return statistics.median(run([EW, "--help"], home)[0] for _ in range(repeat))


def convert_figures(home: Path, repeat: int) -> dict[str, float]:
    """Must run before anything larger: the peak is that of the largest child so far."""
    source = str(demo_checkpoint(lambda text: None))
    runs = []
    for index in range(repeat):
        output = str(home / f"converted-{index}")
        arguments = [EW, "convert-trt", "--model", source, "--output", output, "--stage", "checkpoint"]
        runs.append(run([*arguments, "--force", "--json"], home))
    return {
        "seconds": round(statistics.median(one[0] for one in runs), 2),
        "peak_rss_mib": max(one[1] for one in runs),
    }


def first_token_seconds(home: Path) -> float:
    """From the start of `./ew demo` to the first text on its stdout."""
    began = time.monotonic()
    environment = {**os.environ, "EW_HOME": str(home)}
    command = [EW, "demo", "--port", str(PORT)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=0
    ) as demo:
        assert demo.stdout is not None
        seen = ""
        while "?\n" not in seen or not seen.split("?\n", 1)[1].strip():
            character = demo.stdout.read(1)
            if not character:
                raise RuntimeError(f"the demo ended without a token: {seen!r}")
            seen += character
        elapsed = time.monotonic() - began
        demo.stdout.read()
    return elapsed


def answer(key: str, index: int) -> int:
    """Tokens of one streamed answer of NEW_TOKENS tokens."""
    body = {"modelId": DEMO_MODEL, "prompt": f"Write story number {index} about the sea.", "temperature": 0}
    body |= {"maxTokens": NEW_TOKENS, "minTokens": NEW_TOKENS}
    url = f"http://127.0.0.1:{PORT}/api/v1/inference/stream"
    response = requests.post(url, json=body, headers={"X-API-Key": key}, timeout=600)
    response.raise_for_status()
    frames = response.content.decode("utf-8").split("\n\n")
    receipt = json.loads(frames[-3].removeprefix("data: "))
    return int(receipt["usage"]["completionTokens"])


def tokens_per_second(key: str, streams: int, repeat: int) -> float:
    rates = []
    for _ in range(repeat):
        began = time.monotonic()
        with ThreadPoolExecutor(streams) as pool:
            tokens = sum(pool.map(lambda index: answer(key, index), range(streams)))
        rates.append(tokens / (time.monotonic() - began))
    return round(statistics.median(rates), 1)


def measure(repeat: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for shared in ("models", ".cache"):
            (home / shared).symlink_to(SOURCE_ROOT / shared)
        figures: dict[str, Any] = {
            "machine": describe(),
            "help_seconds": round(help_seconds(home, repeat), 3),
        }
        figures["convert"] = convert_figures(home, repeat)
        run([EW, "demo", "--once", "--port", str(PORT)], home)  # converts and compiles once, not counted
        try:
            figures["demo_to_first_token_seconds"] = round(first_token_seconds(home), 2)
            key = (home / "run" / "api_key").read_text().strip()
            answer(key, 0)
            figures["tokens_per_second"] = {
                str(streams): tokens_per_second(key, streams, repeat) for streams in (1, 8)
            }
        finally:
            run([EW, "stop"], home)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    text = json.dumps(measure(options.repeat), indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
