"""Milliseconds from a client's leaving to the engine's active-request count of 0, through Triton.

    python benchmarks/cancellation.py --port 8000 --metrics-port 8002 --model M-tensorrt_llm

`disconnect` closes a streaming HTTP connection after --after events; `stop` sends a stop request instead.
The engine must be idle. The count itself is brought up to date every 100 ms.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import time

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


def main(options: argparse.Namespace) -> None:
    for how in ("disconnect", "stop"):
        times = sorted(leave_once(options, how) for _ in range(options.rounds))
        result = {
            "how": how,
            "median_ms": round(statistics.median(times), 1),
            "worst_ms": round(times[-1], 1),
        }
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=1500, help="tokens that the request would make")
    parser.add_argument("--after", type=int, default=3, help="events that the client reads before it leaves")
    parser.add_argument("--rounds", type=int, default=20)
    main(parser.parse_args())
