"""What the proxy adds to a token stream, against the token source itself, nginx and a Python gateway.

    python -m benchmarks.proxy --streams 1 64 256 --rounds 3 --nginx nginx --litellm .venv-litellm/bin/litellm

All targets stand in front of the same source and are measured in turns in one run, so that a slow machine
slows all of them. Prints a table; --json FILE keeps the numbers.

added TTFT   first token at the client since the request was sent, less the same of the source itself
added delay  write of a token by the source until it reaches the client, less the same of the source itself
CPU          of the target's processes, for each token
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.proxy_client import Run, Target, load
from proxy.keys import KeyStore

ROOT = Path(__file__).resolve().parent.parent
PATHS = {"direct": "/v2/models/m-tensorrt_llm/generate_stream", "litellm": "/v1/chat/completions"}
TOKENS_OF = {
    "direct": re.compile(rb'"output_ids":7'),
    "nginx": re.compile(rb'"output_ids":7'),
    "ew": re.compile(rb'"text":"([^"]+)"'),
    "litellm": re.compile(rb'"content":"(a+)"'),
}
START_SECONDS = 300.0


@dataclass(frozen=True)
class Scenario:
    """`requests` in all, over `streams` connections; `pace` in seconds between tokens, 0 is no pause."""

    name: str
    streams: int
    requests: int
    tokens: int
    pace: float


@dataclass(frozen=True)
class Row:
    """One target in one scenario; times in milliseconds, CPU in microseconds a token, memory in bytes."""

    scenario: str
    target: str
    streams: int
    added_ttft_p50: float
    added_ttft_p99: float
    added_delay_p50: float
    added_delay_p99: float
    tokens_per_second: float
    cpu_us_per_token: float
    rss_per_stream: float
    lost: int
    errors: int


class Server:
    """A started target: its address and the processes whose CPU counts."""

    def __init__(self, target: Target, process: subprocess.Popen[bytes] | None) -> None:
        self.target = target
        self._root = psutil.Process(process.pid) if process else None

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self._processes()]
        return sum(one.user + one.system for one in times)

    def rss(self) -> int:
        return sum(process.memory_info().rss for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)] if self._root else []


def main() -> None:
    options = parse_options()
    uvloop.install()
    rows = run(list(scenarios(options)), options)
    document = {"machine": machine(), "workers": options.workers, "rows": [asdict(row) for row in rows]}
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--tokens", type=int, default=100, help="tokens of a paced stream")
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second of a paced stream")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each target in each scenario")
    parser.add_argument("--workers", type=int, default=1, help="of the proxy")
    parser.add_argument("--nginx", help="nginx's binary")
    parser.add_argument("--litellm", help="LiteLLM's binary, from an environment of its own")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    return parser.parse_args()


def scenarios(options: argparse.Namespace) -> Iterator[Scenario]:
    yield Scenario("ttft", 1, 200, 1, 0.0)
    for streams in options.streams:
        yield Scenario("paced", streams, 2 * streams, options.tokens, 1 / options.rate)
    yield Scenario("unpaced", 1, 20, 500, 0.0)
    yield Scenario("unpaced", 64, 128, 200, 0.0)


def targets(options: argparse.Namespace) -> list[str]:
    return ["direct", "ew", *(name for name in ("nginx", "litellm") if getattr(options, name))]


def run(plan: list[Scenario], options: argparse.Namespace) -> list[Row]:
    """All servers are started once; the source is told the pace of each scenario."""
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ew-bench-")))
        shape = (max(one.requests for one in plan), max(one.tokens for one in plan))
        times = np.memmap(folder / "times", dtype=np.float64, mode="w+", shape=shape)
        source = stack.enter_context(start_source(folder, shape))
        servers = {"direct": source}
        for name in targets(options)[1:]:
            servers[name] = stack.enter_context(START[name](folder, source.target.port, options))
        for scenario in plan:
            set_pace(source.target.port, scenario.pace)
            warm_up(servers)
            rows += measure(scenario, servers, times, options.rounds)
            print_rows(rows[-len(servers) :])
    return rows


def set_pace(port: int, seconds: float) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/pace", json.dumps(seconds).encode())
    urllib.request.urlopen(request).close()


def warm_up(servers: dict[str, Server]) -> None:
    for server in servers.values():
        asyncio.run(load(server.target, 1, 1, 1, 30, 0))


def measure(scenario: Scenario, servers: dict[str, Server], times: Any, rounds: int) -> list[Row]:
    ramp = scenario.tokens * scenario.pace
    limit = 60 + 4 * ramp
    seen: dict[str, list[tuple[Run, Any, float, int]]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            times[:] = np.nan
            cpu, rss = server.cpu_seconds(), server.rss()
            work = load(server.target, scenario.streams, scenario.requests, scenario.tokens, limit, ramp)
            run = asyncio.run(work)
            growth = max(0, server.rss() - rss)
            sent = np.array(times[: scenario.requests, : scenario.tokens])
            seen[name].append((run, sent, server.cpu_seconds() - cpu, growth))
    base = seen["direct"]
    return [row(scenario, name, runs, base) for name, runs in seen.items()]


def row(scenario: Scenario, name: str, runs: list[Any], base: list[Any]) -> Row:
    ttft, base_ttft = _ttft(runs), _ttft(base)
    delay, base_delay = _delay(runs), _delay(base)
    tokens = sum(int(np.isfinite(run.arrived).sum()) for run, *_ in runs)
    return Row(
        scenario=scenario.name,
        target=name,
        streams=scenario.streams,
        added_ttft_p50=_added(ttft, base_ttft, 50),
        added_ttft_p99=_added(ttft, base_ttft, 99),
        added_delay_p50=_added(delay, base_delay, 50),
        added_delay_p99=_added(delay, base_delay, 99),
        tokens_per_second=tokens / sum(run.seconds for run, *_ in runs),
        cpu_us_per_token=1e6 * sum(cpu for *_, cpu, _ in runs) / max(1, tokens),
        rss_per_stream=max(growth for *_, growth in runs) / scenario.streams,
        lost=sum(run.lost for run, *_ in runs),
        errors=sum(run.errors for run, *_ in runs),
    )


def _ttft(runs: list[Any]) -> Any:
    return np.concatenate([run.arrived[:, 0] - run.began for run, *_ in runs])


def _delay(runs: list[Any]) -> Any:
    return np.concatenate([(run.arrived - times).ravel() for run, times, *_ in runs])


def _added(values: Any, base: Any, percentile: float) -> float:
    """Difference of a percentile, in milliseconds."""
    return float(1000 * (np.nanpercentile(values, percentile) - np.nanpercentile(base, percentile)))


@contextmanager
def start_source(folder: Path, shape: tuple[int, int]) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.proxy_source", f"--port={port}"]
    command += [f"--times={folder / 'times'}", "--shape", *map(str, shape)]
    target = Target("direct", port, PATHS["direct"], TOKENS_OF["direct"])
    with started(command, port) as process:
        yield Server(target, process)


@contextmanager
def start_ew(folder: Path, source: int, options: argparse.Namespace) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "proxy", f"--config={write_package(folder)}", f"--port={port}"]
    command += [f"--triton=http://127.0.0.1:{source}", f"--workers={options.workers}", "--max-queue=5000"]
    key = KeyStore(folder / "keys.json").add("bench")
    command.append(f"--keys={folder / 'keys.json'}")
    target = Target("ew", port, "/api/v1/inference/stream", TOKENS_OF["ew"], key)
    with started(command, port) as process:
        yield Server(target, process)


@contextmanager
def start_nginx(folder: Path, source: int, options: argparse.Namespace) -> Iterator[Server]:
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, source=source))
    command = [options.nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with started(command, port) as process:
        yield Server(Target("nginx", port, PATHS["direct"], TOKENS_OF["nginx"]), process)


@contextmanager
def start_litellm(folder: Path, source: int, options: argparse.Namespace) -> Iterator[Server]:
    port = free_port()
    (folder / "litellm.yaml").write_text(LITELLM.format(source=source))
    command = [options.litellm, "--config", str(folder / "litellm.yaml"), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--num_workers", str(options.workers)]
    with started(command, port) as process:
        yield Server(Target("litellm", port, PATHS["litellm"], TOKENS_OF["litellm"], LITELLM_KEY), process)


START = {"ew": start_ew, "nginx": start_nginx, "litellm": start_litellm}
NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 8192; }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream source {{ server 127.0.0.1:{source}; keepalive 1024; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://source; proxy_http_version 1.1; proxy_set_header Connection "";
                 proxy_buffering off; }} }} }}
"""
LITELLM_KEY = "sk-" + "0123456789abcdef" * 2  # it does not start without one
LITELLM = """model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{source}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
general_settings: {{master_key: %s}}
""".replace("%s", LITELLM_KEY)


@contextmanager
def started(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it answers on its port; its children end with it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{process.args!r} ended with {process.returncode} before it answered")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"{process.args!r} did not answer within {START_SECONDS:g} s")


def write_package(folder: Path) -> Path:
    """A config whose model has a byte-level tokenizer: the source's token id is one character."""
    tokenizer_folder = folder / "package" / "tokenizer"
    tokenizer_folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tokenizer_folder / "tokenizer.json"))
    config = folder / "config.json"
    model = {"engine": "cpu", "model_path": str(folder / "package"), "max_batch_size": 1024}
    config.write_text(json.dumps({"models": {"m": model}}))
    return config


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def machine() -> dict[str, Any]:
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def print_rows(rows: list[Row]) -> None:
    if rows and shutil.get_terminal_size().columns:
        print(f"\n{rows[0].scenario}, {rows[0].streams} streams")
    print(
        f"  {'target':8} {'TTFT +p50':>10} {'+p99':>8} {'delay +p50':>11} {'+p99':>8} {'tokens/s':>9}"
        f" {'CPU us/tok':>10} {'KiB/stream':>10} {'lost':>5} {'errors':>6}"
    )
    for one in rows:
        print(
            f"  {one.target:8} {one.added_ttft_p50:10.3f} {one.added_ttft_p99:8.3f}"
            f" {one.added_delay_p50:11.3f} {one.added_delay_p99:8.3f} {one.tokens_per_second:9.0f}"
            f" {one.cpu_us_per_token:10.1f} {one.rss_per_stream / 1024:10.1f} {one.lost:5d} {one.errors:6d}",
            flush=True,
        )


if __name__ == "__main__":
    main()
