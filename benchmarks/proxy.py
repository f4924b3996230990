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
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.proxy_client import Run, load
from benchmarks.proxy_targets import START, Server, start_source, start_triton


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


def main() -> None:
    options = parse_options()
    uvloop.install()
    rows = run(list(scenarios(options)), options)
    document = {"machine": machine(), "workers": options.workers, "rows": [asdict(row) for row in rows]}
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(rows, document["machine"]))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--tokens", type=int, default=100, help="tokens of a paced stream")
    parser.add_argument("--rate", type=float, default=50.0, help="tokens a second of a paced stream")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each target in each scenario")
    parser.add_argument("--workers", type=int, default=1, help="of the proxy")
    parser.add_argument(
        "--source",
        choices=("fast", "triton"),
        default="fast",
        help="fast: a source at C speed; triton: a paced model behind the real tritonserver, good for about"
        " 5,000 tokens a second",
    )
    parser.add_argument("--nginx", help="nginx's binary")
    parser.add_argument("--litellm", help="LiteLLM's binary, from an environment of its own")
    parser.add_argument("--litellm-streams", type=int, default=64, help="most streams that LiteLLM is given")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--markdown", type=Path, help="write the table for docs/performance.md here")
    return parser.parse_args()


def scenarios(options: argparse.Namespace) -> Iterator[Scenario]:
    yield Scenario("ttft", 1, 200, 1, 0.0)
    for streams in options.streams:
        yield Scenario("paced", streams, 2 * streams, options.tokens, 1 / options.rate)
    if options.source == "triton":
        return  # its own limit would be measured, not the proxy's
    yield Scenario("unpaced", 1, 20, 500, 0.0)
    yield Scenario("unpaced", 64, 64, 100, 0.0)


def targets(options: argparse.Namespace) -> list[str]:
    return ["direct", "ew", *(name for name in ("nginx", "litellm") if getattr(options, name))]


def run(plan: list[Scenario], options: argparse.Namespace) -> list[Row]:
    """All servers are started once; the source is told the pace of each scenario."""
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ew-bench-")))
        shape = (max(one.requests for one in plan), max(one.tokens for one in plan))
        times = np.memmap(folder / "times", dtype=np.float64, mode="w+", shape=shape)
        start = start_triton if options.source == "triton" else start_source
        source = stack.enter_context(start(folder, shape))
        servers = {"direct": source}
        for name in targets(options)[1:]:
            servers[name] = stack.enter_context(START[name](folder, source.target.port, options))
        for scenario in plan:
            if options.source == "triton":
                (folder / "pace").write_text(str(scenario.pace))
            else:
                set_pace(source.target.port, scenario.pace)
            few = scenario.streams <= options.litellm_streams
            measured = {name: server for name, server in servers.items() if few or name != "litellm"}
            warm_up(measured)
            rows += measure(scenario, measured, times, options.rounds)
            print_rows(rows[-len(measured) :])
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


def markdown(rows: list[Row], about: dict[str, Any]) -> str:
    """The table of docs/performance.md, under the machine it was made on."""
    lines = [
        f"{about['cpu']}, {about['cores']} cores, load average {about['load_average']:.1f} at the end,"
        f" Python {about['python']}, Linux {about['kernel']}.",
        "",
        "| scenario | streams | target | TTFT +p50 ms | +p99 | delay +p50 ms | +p99 | tokens/s | CPU us/token"
        " | KiB/stream | lost |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.scenario} | {one.streams} | {one.target}"
        f" | {one.added_ttft_p50:.2f} | {one.added_ttft_p99:.2f}"
        f" | {one.added_delay_p50:.3f} | {one.added_delay_p99:.2f} | {one.tokens_per_second:.0f}"
        f" | {one.cpu_us_per_token:.1f} | {one.rss_per_stream / 1024:.1f} | {one.lost} |"
        for one in rows
    ]
    return "\n".join(lines) + "\n"


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
