"""Carries a plan out, remembering each step, so that an interrupted setup goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from common.errors import EnvironmentProblem, EwError, Interrupted, NetworkError, ResourceError
from runtime.doctor import logbook
from runtime.environments import registry
from runtime.environments.plan import CONDA, SetupPlan, Step, unmet
from runtime.environments.registry import Environment
from runtime.locks import file_lock

KEPT_LINES = 400
Progress = Callable[[str], None]


def set_up(plan: SetupPlan, *, progress: Progress = lambda text: None) -> Environment:
    """Make, complete or repair the environment; one that is already as planned is only looked at.

    Raises:
        NetworkError, ResourceError, EnvironmentProblem: a step failed; the same command goes on from there.
    """
    name = plan.request.name
    with file_lock(registry.folder() / f"{name}.lock"):
        environment = _starting_point(plan, progress)
        if environment.finished:
            progress(f"{name} is ready already.")
            return environment
        try:
            return _run(plan, environment, progress)
        except KeyboardInterrupt:
            raise Interrupted() from None


def _starting_point(plan: SetupPlan, progress: Progress) -> Environment:
    """The environment to go on with: as it is, or a new one after removing what cannot be used."""
    old = registry.find(plan.request.name)
    if old is None or old.digest != plan.digest:
        if old:
            progress(
                f"{old.name} was made for {old.engine} {old.version}; making it anew.".replace("  ", " ")
            )
            registry.remove(old)
        return _new(plan)
    state, problem = registry.judge(old)
    if state == "broken" or (old.done and not _python_starts(plan)):
        progress(f"{problem or 'Its Python does not start.'} Making {old.name} anew.")
        registry.remove(old)
        return _new(plan)
    if old.done and state == "unfinished":
        progress(f"Going on after {old.done[-1]}.")
    return old


def _new(plan: SetupPlan) -> Environment:
    request = plan.request
    version = request.release.version if request.release else ""
    if request.manager == "venv" and request.folder.exists():
        shutil.rmtree(request.folder)  # left by a setup that died before its first record
    return registry.save(
        Environment(
            request.name,
            request.engine,
            request.manager,
            plan.digest,
            image=request.image,
            version=version,
        )
    )


def _run(plan: SetupPlan, environment: Environment, progress: Progress) -> Environment:
    for step in plan.steps:
        if step.name in environment.done:
            continue
        started = time.monotonic()
        progress(f"{step.purpose} ...")
        _carry_out(step)
        environment = registry.save(environment.with_changes(done=(*environment.done, step.name)))
        progress(f"{step.purpose}: done in {time.monotonic() - started:.0f} s")
    return registry.save(_verified(plan, environment))


def _verified(plan: SetupPlan, environment: Environment) -> Environment:
    if plan.request.manager == "container":
        return environment.with_changes(finished=True)
    found = _probe(plan)
    if found is None:
        raise EnvironmentProblem(
            f"The Python of {environment.name} does not start.",
            hint=f"Remove it and try again: ./ew env remove {environment.name}",
            code="environment_broken",
        )
    problems = unmet(plan.pins, found["versions"])
    if problems:
        raise EnvironmentProblem(
            f"{environment.name} is not as it must be: {'; '.join(problems)}.",
            hint=f"Remove it and try again: ./ew env remove {environment.name}",
            code="pins_unmet",
        )
    return environment.with_changes(finished=True, prefix=found["prefix"], packages=found["versions"])


def _probe(plan: SetupPlan) -> dict[str, dict[str, str | None]] | None:
    """Prefix and versions, asked of the environment's own Python."""
    request = plan.request
    if request.manager not in CONDA:
        python = Path(request.python) if request.manager == "system" else request.folder / "bin" / "python"
        return registry.probe(python, list(plan.pins))
    options = ["--no-capture-output"] if request.manager == "conda" else []
    command = [
        request.manager,
        "run",
        *options,
        "--name",
        request.name,
        "python",
        "-c",
        registry.PROBE,
        *plan.pins,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        answer: dict[str, dict[str, str | None]] = json.loads(done.stdout)
        return answer
    except ValueError:
        return None


def _python_starts(plan: SetupPlan) -> bool:
    return plan.request.manager == "container" or _probe(plan) is not None


def _carry_out(step: Step) -> None:
    """Run a step with its output on stderr; a failure is explained with the book of known lines."""
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        process = subprocess.Popen(
            step.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        raise EnvironmentProblem(f"{step.command[0]} does not start: {error}.", code="step_failed") from None
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sys.stderr.write(line)
    if process.returncode != 0:
        raise _failure(step, list(lines), process.returncode)


def _failure(step: Step, lines: list[str], code: int) -> EwError:
    findings = logbook.explain(lines)
    what = f"To {step.purpose} failed ({step.command[0]} ended with {code})."
    if not findings or findings[0].id == "log_unknown_error":
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        hint = "Its own message is above; the same command goes on from here."
        return EnvironmentProblem(what, why=last, hint=hint, code="step_failed")
    first = findings[0]
    kind = {"hf_unreachable": NetworkError, "disk_full": ResourceError}.get(first.id, EnvironmentProblem)
    if first.id in ("hf_unreachable", "pip_no_match"):
        hint = (
            "Set a mirror (PIP_INDEX_URL) or a proxy (HTTPS_PROXY); or download the wheels elsewhere (pip "
            "download) and give their folder: --find-links FOLDER. The same command then goes on from here."
        )
        return kind(what, why=f"{first.cause} {first.evidence}", hint=hint, code=first.id)
    return kind(what, why=f"{first.cause} {first.evidence}", hint=first.fix, code=first.id)
