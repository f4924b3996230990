"""Milliseconds from a client's leaving to the end of the engine's work.

    python -m benchmarks.cancellation --phases
    python -m benchmarks.cancellation --port 8000 --metrics-port 8002 --model M-tensorrt_llm

`--phases` goes through proxy, tritonserver, bridge and worker, in all five phases of a request, streamed and
plain, over an engine that holds each phase and takes 5 ms a step: what is measured is everything but the
engine's own step. It starts and ends the servers itself.

Without it, a running real engine is left through Triton alone: `disconnect` closes a streaming HTTP
connection after --after events; `stop` sends a stop request instead. The engine must be idle. Its count of
active requests, which tells the end, is brought up to date every 100 ms.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine
from tests.e2e.phased_stack import PHASES, PLAIN, STREAM, Phase, PhasedStack, phased_stack

PROMPT = list(range(5, 37))


def post(port: int, path: str, body: object) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body))
    return connection, connection.getresponse()


def active(port: int, model: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    for line in lines:
        if line.startswith("nv_trt_llm_request_metrics") and '"active"' in line and f'"{model}"' in line:
            return float(line.rsplit(" ", 1)[1])
    raise RuntimeError(f"no active-request count of {model}")


def leave_once(options: argparse.Namespace, how: str) -> float:
    """Start a request, leave it, and wait until the engine has dropped it; milliseconds of the last part."""
    body = {"id": "leaving", "input_ids": PROMPT, "input_lengths": len(PROMPT), "streaming": True}
    path = f"/v2/models/{options.model}"
    connection, response = post(
        options.port, f"{path}/generate_stream", {**body, "request_output_len": options.tokens}
    )
    for _ in range(2 * options.after):
        response.readline()
    while active(options.metrics_port, options.model) != 1:
        time.sleep(0.005)
    started = time.perf_counter()
    if how == "disconnect":
        response.close()
        connection.close()
    else:
        stop, answer = post(options.port, f"{path}/generate", {**body, "request_output_len": 1, "stop": True})
        answer.read()
        stop.close()
    while active(options.metrics_port, options.model) != 0:
        time.sleep(0.002)
    elapsed = 1000 * (time.perf_counter() - started)
    connection.close()
    return elapsed


def leave_phase(stack: PhasedStack, phase: Phase, path: str) -> float:
    """Milliseconds from the client's leaving in a phase until the engine drops the request."""
    connection, request = stack.enter(phase, path)
    started = time.monotonic()
    connection.close()
    elapsed = 1000 * (stack.cancelled_at(request) - started)
    stack.close_all()
    return elapsed


def summary(times: list[float], **names: str) -> dict[str, Any]:
    return {**names, "median_ms": round(statistics.median(times), 1), "worst_ms": round(max(times), 1)}


def measure_phases(rounds: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, phased_stack(Path(folder)) as stack:
        for path in (STREAM, PLAIN):
            for phase in PHASES:
                times = [leave_phase(stack, phase, path) for _ in range(rounds)]
                yield summary(times, path=path, phase=phase.name)


def measure_ways(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for how in ("disconnect", "stop"):
        yield summary([leave_once(options, how) for _ in range(options.rounds)], how=how)


def main(options: argparse.Namespace) -> None:
    results = list(measure_phases(options.rounds) if options.phases else measure_ways(options))
    document = {"machine": machine.describe(), "rounds": options.rounds, "results": results}
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--phases", action="store_true", help="through the whole stack, phase by phase")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--model", help="the engine model, without --phases")
    parser.add_argument("--tokens", type=int, default=1500, help="tokens that the request would make")
    parser.add_argument("--after", type=int, default=3, help="events that the client reads before it leaves")
    parser.add_argument("--rounds", type=int, default=20)
    main(parser.parse_args())
