"""Which environments there are: one record each in .cache/envs, written after every finished step."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common import atomic
from common.config import Engine
from common.errors import UsageError
from common.paths import home
from runtime.environments import base

Manager = Literal["venv", "conda", "mamba", "micromamba", "container", "system"]
State = Literal["ready", "unfinished", "broken"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PROBE = """
import importlib.metadata as metadata, json, sys
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print(json.dumps({"prefix": sys.prefix, "versions": {name: version(name) for name in sys.argv[1:]}}))
"""


@dataclass(frozen=True)
class Environment:
    """One engine's environment. `prefix` is its folder, "" until it is known; a container has an `image`.

    `digest` identifies the plan that it was made from, `done` its finished steps, `packages` the versions
    that were found at the end.
    """

    name: str
    engine: Engine
    manager: Manager
    digest: str
    prefix: str = ""
    image: str = ""
    version: str = ""
    done: tuple[str, ...] = ()
    finished: bool = False
    packages: dict[str, str | None] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        return Path(self.prefix) / "bin" / "python"

    def as_dict(self) -> dict[str, Any]:
        state, problem = judge(self)
        return {**asdict(self), "state": state, **({"problem": problem} if problem else {})}

    def with_changes(self, **changes: Any) -> Environment:
        return replace(self, **changes)


def folder() -> Path:
    return home().cache / "envs"


def check_name(name: str) -> str:
    """
    Raises:
        UsageError: not usable as a folder and as a conda environment's name.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be an environment's name.",
            hint="Use letters, digits, '.', '_' and '-', for example ew-trt.",
            code="bad_name",
        )
    return name


def save(environment: Environment) -> Environment:
    atomic.write_json(_record(environment.name), asdict(environment))
    return environment


def find(name: str) -> Environment | None:
    """The environment of that name, or None. A record that is no longer readable counts as none."""
    try:
        fields = json.loads(_record(name).read_text(encoding="utf-8"))
        return Environment(**{**fields, "done": tuple(fields["done"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def get(name: str) -> Environment:
    """
    Raises:
        UsageError: there is none of that name, or it is the base environment, which has no record.
    """
    environment = find(check_name(name))
    if environment is None and name == base.NAME:
        raise UsageError(
            "The base environment is ew's own; it is neither chosen nor removed by its name.",
            hint="The cpu engine runs in it when no environment is named; ./ew env show base shows it, and "
            "rm -rf .venv && ./ew setup makes it anew.",
            code="environment_is_base",
        )
    if environment is None:
        known = ", ".join([base.NAME, *(one.name for one in all_environments())])
        raise UsageError(
            f"There is no environment {name!r}.",
            why=f"Known: {known}.",
            hint="Make one: ./ew setup --engine cuda-trt --env NAME",
            code="environment_unknown",
        )
    return environment


def all_environments() -> list[Environment]:
    names = sorted(path.stem for path in folder().glob("*.json"))
    return [environment for environment in map(find, names) if environment]


def for_engine(engine: Engine, name: str | None = None) -> Environment | None:
    """The ready environment to run an engine in: the one named, else the engine's first; or None.

    Raises:
        UsageError: the one named does not exist or is for another engine.
    """
    if name is None:
        mine = (one for one in all_environments() if one.engine == engine)
        return next((one for one in mine if judge(one)[0] == "ready"), None)
    environment = get(name)
    if environment.engine != engine:
        raise UsageError(
            f"The environment {name!r} is for {environment.engine}, not {engine}.",
            hint=f"Make one for it: ./ew setup --engine {engine} --env OTHER_NAME",
            code="environment_engine",
        )
    return environment


def judge(environment: Environment) -> tuple[State, str]:
    """Whether it can be used, and why not."""
    if not environment.finished:
        done = f"after {environment.done[-1]}" if environment.done else "before its first step ended"
        return "unfinished", f"Its setup stopped {done}."
    if environment.manager == "container":
        return _judge_image(environment)
    expected = {name: version for name, version in environment.packages.items() if version}
    found = probe(environment.python, list(expected))
    if found is None:
        return "broken", f"{environment.python} does not start."
    changed = [name for name, version in expected.items() if found["versions"][name] != version]
    if changed:
        now = ", ".join(f"{name} {found['versions'][name] or 'is missing'}" for name in changed)
        return "broken", f"Not as it was set up: {now}."
    return "ready", ""


def probe(python: Path, distributions: Sequence[str]) -> dict[str, Any] | None:
    """Prefix and versions ({distribution: version or None}) of an interpreter; None if it does not start."""
    try:
        command = [str(python), "-c", PROBE, *distributions]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def remove(environment: Environment) -> list[str] | None:
    """Remove it from the disk; returns the manager's command that did it, None for a plain folder."""
    command = removal(environment)
    if command:
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    elif environment.manager == "venv":
        shutil.rmtree(folder() / environment.name, ignore_errors=True)
    _record(environment.name).unlink(missing_ok=True)
    return command


def removal(environment: Environment) -> list[str] | None:
    """What removes an environment that a manager keeps; a container's image and the system's Python stay."""
    manager = environment.manager
    if manager not in ("conda", "mamba", "micromamba") or shutil.which(manager) is None:
        return None
    return [manager, "env", "remove", "--yes", "--name", environment.name]


def size(environment: Environment) -> int:
    """Bytes on disk; 0 where the folder is not ours to measure."""
    if environment.manager != "venv":
        return 0
    total = 0
    for place, _, files in os.walk(folder() / environment.name):
        total += sum(os.lstat(os.path.join(place, name)).st_size for name in files)
    return total


def _judge_image(environment: Environment) -> tuple[State, str]:
    docker = shutil.which("docker")
    if docker is None:
        return "broken", "docker is not on the path."
    command = [docker, "image", "inspect", environment.image]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (
        ("ready", "") if done.returncode == 0 else ("broken", f"{environment.image} is not on this machine.")
    )


def _record(name: str) -> Path:
    return folder() / f"{name}.json"
