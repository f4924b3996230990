"""A rollout as Kubernetes does it, under load: two copies behind HAProxy, one after the other is replaced.

    ./.venv/bin/python -m benchmarks.rollout --requests 2000 [--json FILE]

A copy's endpoint is removed and its preStop hook runs at the same time, SIGTERM follows the hook, and the
copy comes back when it is ready. Nothing is retried, neither by the balancer nor by the clients: a request
is whole, or lost. Only a stream that is still running when the drain is over may end with an error event.
Ends with 1 when a request was lost. Needs haproxy; EW_HOME chooses the installation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.rollout_copies import (
    KEYS_NAME,
    Balancer,
    Copy,
    Ended,
    Ending,
    Mode,
    balancer,
    end_as_kubernetes,
    free_port,
)
from benchmarks.rollout_load import Load, Outcome
from common.paths import home
from proxy.keys import KeyStore
from runtime import demo

# Streams held on a copy when its end begins. On any machine some are over before SIGTERM, some end during
# the drain, and the last one is too long for it.
HELD_TOKENS = (8, 16, 32, 64, 128, 256, 2000)
DRAIN_CODE = "draining"
CLOCK_SLACK = 0.2  # between the signal's sending and the beginning of the drain, in seconds
MODEL_ENTRY = {"engine": "cpu", "max_input_len": 512, "max_output_len": 2048, "precision": "exact"}


@dataclass(frozen=True)
class Plan:
    """`requests` are made at least, by `users` at once; a copy goes when its share of them is done."""

    requests: int
    users: int
    ending: Ending
    shares: tuple[float, ...] = (0.2, 0.6)
    mode: Mode = "http"


@dataclass(frozen=True)
class Replaced:
    """One copy's end and its return, which took `ready_seconds`."""

    copy: str
    ended: Ended
    ready_seconds: float


async def rollout(copies: list[Copy], front: Balancer, plan: Plan, load: Load) -> dict[str, Any]:
    """Replace the copies under load, one after the other; the report."""
    began = time.monotonic()
    users = [asyncio.create_task(load.user()) for _ in range(plan.users)]
    replaced = []
    for copy, share in zip(copies, plan.shares, strict=False):
        await load.until(int(share * plan.requests))
        replaced.append(await replace(copy, front, plan.ending, load))
    await load.until(plan.requests)
    load.stop()
    await asyncio.gather(*users)
    return report(plan, load, replaced, time.monotonic() - began)


async def replace(copy: Copy, front: Balancer, ending: Ending, load: Load) -> Replaced:
    """End a copy that has streams of many lengths running, and bring it back."""
    outcomes = [Outcome(copy.name, time.monotonic(), held=True) for _ in HELD_TOKENS]
    held = [
        asyncio.create_task(load.hold(copy.url, tokens, outcome))
        for tokens, outcome in zip(HELD_TOKENS, outcomes, strict=True)
    ]
    await asyncio.gather(*(outcome.first.wait() for outcome in outcomes))
    ended = await end_as_kubernetes(copy, front, ending)
    await asyncio.gather(*held)
    copy.start()
    ready_seconds = await copy.wait_ready()
    front.add(copy.name)
    return Replaced(copy.name, ended, ready_seconds)


def report(plan: Plan, load: Load, replaced: list[Replaced], seconds: float) -> dict[str, Any]:
    """What happened; `faults` says what keeps it from being a proof."""
    sigterms = {one.copy: one.ended.sigterm_at for one in replaced}
    full_grace = [one for one in load.outcomes if had_its_grace(one, sigterms, plan.ending.drain)]
    lost = Counter(one.problem for one in load.outcomes if one.problem and one not in full_grace)
    return {
        "requests": len(load.outcomes),
        "whole": sum(not one.problem for one in load.outcomes),
        "held_streams": sum(one.held for one in load.outcomes),
        "ended_after_their_full_grace": len(full_grace),
        "users_among_them": sum(not one.held for one in full_grace),
        "lost": lost.total(),
        "lost_by_reason": dict(lost),
        "served_by": dict(Counter(one.copy for one in load.outcomes)),
        "rollouts": [_described(one, load) for one in replaced],
        "faults": [fault for one in replaced for fault in _faults(one, load, full_grace)],
        "seconds": round(seconds, 1),
    }


def had_its_grace(outcome: Outcome, sigterms: dict[str, float], drain: float) -> bool:
    """Was it too long, and told so at the end of the drain, not before?"""
    if DRAIN_CODE not in outcome.problem or outcome.copy not in sigterms:
        return False
    return outcome.ended - sigterms[outcome.copy] >= drain - CLOCK_SLACK


def _described(one: Replaced, load: Load) -> dict[str, Any]:
    moment = one.ended.sigterm_at
    lasted = [outcome.ended - moment for outcome in _whole_over(one, load)]
    return {
        "copy": one.copy,
        "streams_that_ended_whole_after_sigterm": len(lasted),
        "longest_of_them_seconds": round(max(lasted, default=0.0), 2),
        "exit_seconds_after_sigterm": round(one.ended.exit_seconds, 2),
        "exit_code": one.ended.exit_code,
        "killed": one.ended.killed,
        "ready_again_seconds": round(one.ready_seconds, 2),
    }


def _whole_over(one: Replaced, load: Load) -> list[Outcome]:
    """Requests that ran on the copy at SIGTERM and ended whole."""
    return [
        outcome
        for outcome in load.outcomes
        if outcome.copy == one.copy and outcome.spans(one.ended.sigterm_at) and not outcome.problem
    ]


def _faults(one: Replaced, load: Load, full_grace: list[Outcome]) -> list[str]:
    found = []
    if one.ended.killed or one.ended.exit_code != 0:
        found.append(f"{one.copy} ended with {one.ended.exit_code}")
    if not _whole_over(one, load):
        found.append(f"no stream of {one.copy} was running at SIGTERM and ended whole")
    if not any(outcome.copy == one.copy for outcome in full_grace):
        found.append(f"no stream of {one.copy} used its whole grace")
    return found


def run(plan: Plan, package: Path, folder: Path) -> dict[str, Any]:
    """Start two copies that serve `package`, replace both, stop them; the report."""
    key = KeyStore(folder / KEYS_NAME).add("rollout")
    copies = [make_copy(folder / name, package, plan.ending) for name in ("a", "b")]
    with ExitStack() as stack:
        for copy in copies:
            stack.callback(copy.end)
            copy.start()
        front = stack.enter_context(balancer(copies, folder, plan.mode))
        return asyncio.run(_started(copies, front, plan, Load(front.url, key, package.name)))


async def _started(copies: list[Copy], front: Balancer, plan: Plan, load: Load) -> dict[str, Any]:
    await asyncio.gather(*(copy.wait_ready() for copy in copies))
    return await rollout(copies, front, plan, load)


def make_copy(folder: Path, package: Path, ending: Ending) -> Copy:
    """A home folder that serves `package` and shares the caches of this installation."""
    (folder / "deploy").mkdir(parents=True)
    (folder / ".cache").symlink_to(home().cache)
    entry = {**MODEL_ENTRY, "model_path": str(package)}
    (folder / "deploy" / "config.json").write_text(json.dumps({"models": {package.name: entry}}))
    return Copy(folder.name, folder, free_port(), package.name, ending.drain, ending.lame_duck)


def main() -> None:
    options = parse_arguments()
    ending = Ending(options.endpoint_delay, options.pre_stop, options.drain, options.lame_duck, options.grace)
    plan = Plan(options.requests, options.users, ending, mode=options.mode)
    package = home().models / demo.ensure_model(None, lambda text: print(text, file=sys.stderr))
    with tempfile.TemporaryDirectory(prefix="ew-rollout-") as folder:
        found = run(plan, package, Path(folder))
    settings = {"users": options.users, "mode": options.mode, **asdict(ending)}
    document = {"machine": machine.describe(), "load": os.getloadavg(), "settings": settings, **found}
    text = json.dumps(document, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if found["lost"] or found["faults"] else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--mode", choices=("http", "tcp"), default="http", help="tcp: of connections only")
    parser.add_argument("--endpoint-delay", type=float, default=2.0, help="seconds until the balancer knows")
    parser.add_argument("--pre-stop", type=float, default=5.0, help="seconds from deletion to SIGTERM")
    parser.add_argument("--drain", type=float, default=15.0, help="seconds that streams have after SIGTERM")
    parser.add_argument("--lame-duck", type=float, default=10.0, help="of these, for idle connections")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds from deletion to SIGKILL")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
