"""How many responses a second the bridge passes through Triton, and what becomes of tokens beyond that.

    python -m benchmarks.relay --streams 16 64 256 --step-ms 8 4 2

The real tritonserver and bridge with an engine that computes nothing (benchmarks/paced_engine.py), read over
`generate_stream`. Where tokens come faster than responses can be sent, several ride in one response.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

from benchmarks.machine import describe
from benchmarks.streams import Endpoint, load
from benchmarks.triton_source import MODEL, triton_process, write_model
from common.paths import SOURCE_ROOT

PROMPT = list(range(100))


def write_repository(folder: Path, step_ms: float) -> None:
    """The bridge's model; its worker is the paced engine in the place of `-m worker`."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -m benchmarks.paced_engine "$@"\n')
    python.chmod(0o755)
    worker = {
        "engine": "paced",
        "root": str(SOURCE_ROOT),
        "package": str(folder),
        "python": str(python),
        "options": {"step_ms": step_ms},
    }
    write_model(folder, "tensorrtllm", {"worker.json": json.dumps(worker)})


def wait_ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"http://127.0.0.1:{port}/v2/models/{MODEL}/ready", timeout=1).ok:
                return
        time.sleep(0.1)
    raise SystemExit("tritonserver did not become ready.")


def measure(streams: int, step_ms: float, options: argparse.Namespace) -> dict[str, Any]:
    body = {"input_ids": PROMPT, "input_lengths": len(PROMPT), "request_output_len": options.tokens}
    path = f"/v2/models/{MODEL}/generate_stream"
    endpoint = Endpoint(options.port, path, r'"output_ids":(\[[0-9,]+\]|\d+)', {})
    plan = [[{**body, "streaming": True}] * options.requests for _ in range(streams)]
    seen = load(endpoint, plan, processes=options.clients).as_dict()
    responses = round(seen["tokens_per_second"] / seen["tokens_per_event"])
    return {"step_ms": step_ms, "responses_per_second": responses, **seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--step-ms", type=float, nargs="+", default=[8.0, 4.0, 2.0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=2, help="of each stream, one after the other")
    parser.add_argument("--clients", type=int, default=2, help="processes that make the load")
    parser.add_argument("--port", type=int, default=8094)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for step_ms in options.step_ms:
        with tempfile.TemporaryDirectory() as made:
            write_repository(Path(made), step_ms)
            with triton_process(Path(made), options.port, {"EW_LOG_DIR": made}):
                wait_ready(options.port)
                for streams in options.streams:
                    rows.append(measure(streams, step_ms, options))
                    sys.stdout.write(json.dumps(rows[-1]) + "\n")
                    sys.stdout.flush()
    if options.json:
        document = {"machine": describe(), "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
