"""Makes and checks the base environment `.venv`. Standard library only; the launcher runs it.

A finished environment holds a marker with the digest of the lock it was made from. Anything else, an
interrupted install, another lock, a Python that went away, is completed or rebuilt on the next start.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any, Iterator, Sequence

from runtime import pythons

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MARKER = "ew-environment.json"
EXIT_ENVIRONMENT = 5
EXIT_INTERRUPTED = 130


class BootstrapError(Exception):
    """The environment cannot be made: what happened, and what to type next."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


def environment_folder() -> str:
    return os.environ.get("EW_VENV") or os.path.join(ROOT, ".venv")


def interpreter(folder: str) -> str:
    return os.path.join(folder, "bin", "python")


def lock_path(layer: str) -> str:
    return os.path.join(ROOT, "requirements", layer + ".lock")


def digest(layer: str) -> str:
    with open(lock_path(layer), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def read_marker(folder: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, MARKER), encoding="utf-8") as file:
            marker: dict[str, Any] = json.load(file)
            return marker
    except (OSError, ValueError):
        return {}


def missing_layers(folder: str, layers: Sequence[str]) -> list[str]:
    """The layers ("base", "dev") that are not installed from today's locks."""
    installed = read_marker(folder).get("layers", {})
    if not os.access(interpreter(folder), os.X_OK):
        return list(layers)
    return [layer for layer in layers if installed.get(layer) != digest(layer)]


def ensure(layers: Sequence[str] = ("base",)) -> str:
    """The environment's Python, after making whatever is missing of it.

    Raises:
        BootstrapError: with what to install or type.
    """
    folder = environment_folder()
    try:
        if missing_layers(folder, layers):
            with locked(folder + ".lock"):
                for layer in missing_layers(folder, layers):
                    build_layer(folder, layer)
    except OSError as error:
        raise BootstrapError(
            f"The environment {folder} cannot be made: {error.filename or folder}: {error.strerror}.",
            "Free space, or get the right to read and write there, or name another folder: "
            "EW_VENV=/other/folder ./ew setup",
        ) from error
    return interpreter(folder)


@contextmanager
def locked(path: str) -> Iterator[None]:
    """One builder at a time; a second one waits and then finds the work done."""
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another ew is setting up this environment; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_layer(folder: str, layer: str) -> None:
    started = time.monotonic()
    python = None if healthy(folder) else choose_python()
    announce(folder, layer)
    check_disk(folder, layer)
    if python is not None:
        create(folder, python)
    install(folder, layer)
    remember(folder, layer)
    say(f"Environment ready ({layer}, {time.monotonic() - started:.0f} s).")


def healthy(folder: str) -> bool:
    """Whether the folder's Python starts and is one that ew supports."""
    found = pythons.inspect_python(interpreter(folder)) if os.path.exists(interpreter(folder)) else None
    return found is not None and found.supported and bool(found.library)


def choose_python() -> pythons.Python:
    """The first supported Python that can make an environment and has its shared library."""
    problem = pythons.machine_problem()
    if problem:
        raise BootstrapError(problem, "Use a supported machine, or the container in Dockerfile.triton.")
    seen = [found for found in map(pythons.inspect_python, pythons.candidates()) if found]
    usable = [found for found in seen if found.supported]
    for found in usable:
        if found.library and (found.has_venv or shutil.which("uv")):
            return found
    raise no_python(seen, usable)


def no_python(seen: list[pythons.Python], usable: list[pythons.Python]) -> BootstrapError:
    """Why none of the Pythons will do, and what to install."""
    if not usable:
        names = ", ".join(found.name for found in seen) or "none"
        return BootstrapError(
            f"ew needs {pythons.SUPPORTED_TEXT} (Triton needs numpy 1, which has no others); found {names}.",
            "Install one (for example: apt install python3.11 python3.11-venv libpython3.11, or uv python "
            "install 3.12), or name one: EW_PYTHON=/path/to/python3.12 ./ew setup",
        )
    best = usable[0]
    dotted = f"{best.version[0]}.{best.version[1]}"
    if not best.library:
        return BootstrapError(
            f"{best.name} has no {pythons.library_name(best.version)}, which Triton's Python backend needs.",
            f"Install {pythons.library_package(best.version)}, then run the same command again.",
        )
    return BootstrapError(
        f"{best.name} cannot make environments: its venv and ensurepip modules are missing.",
        f"Install it (apt install python{dotted}-venv), or uv, then run the same command again.",
    )


def sizes(layer: str) -> dict[str, int]:
    """Measured megabytes: download, installed."""
    with open(os.path.join(ROOT, "requirements", "sizes.json"), encoding="utf-8") as file:
        measured: dict[str, dict[str, int]] = json.load(file)
        return measured[layer]


def announce(folder: str, layer: str) -> None:
    measured = sizes(layer)
    purpose = {"base": "CLI, converter, tritonserver and cpu engine", "dev": "test tools"}[layer]
    say(
        f"Setting up {os.path.relpath(folder)} ({purpose}): about {measured['download']} MB to download, "
        f"{measured['installed']} MB on disk."
    )


def check_disk(folder: str, layer: str) -> None:
    free = shutil.disk_usage(os.path.dirname(folder)).free // 2**20
    needed = sizes(layer)["installed"] + sizes(layer)["download"]
    if free < needed:
        raise BootstrapError(
            f"The disk of {folder} has {free} MB free; setting up needs about {needed} MB.",
            "Free some space, or put the environment elsewhere: EW_VENV=/other/disk/ew-venv ./ew setup",
        )


def create(folder: str, python: pythons.Python) -> None:
    """An empty environment on `python`; a broken one in its place is removed first."""
    if os.path.isdir(folder):
        shutil.rmtree(folder)
    uv = shutil.which("uv")
    command = [uv, "venv", "--quiet", "--python", python.executable, folder] if uv else None
    if command is None or not run_quietly(command):
        run_or_fail([python.executable, "-m", "venv", folder], "Making the environment failed.")


def install(folder: str, layer: str) -> None:
    """Exactly the locked packages, digests checked; what is there already is kept, so a retry goes on."""
    options = ["--no-deps", "--require-hashes", "-r", lock_path(layer)]
    uv = shutil.which("uv")
    if uv and run_visibly([uv, "pip", "install", "--python", interpreter(folder), *options]):
        return
    if not run_quietly([interpreter(folder), "-m", "pip", "--version"]):
        run_or_fail([interpreter(folder), "-m", "ensurepip", "--upgrade"], "The environment has no pip.")
    run_or_fail(
        [
            interpreter(folder),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            *pip_progress(),
            *options,
        ],
        "Installing the locked packages failed.",
    )


def pip_progress() -> list[str]:
    """Download bars for people; a short log in a pipe."""
    return [] if sys.stderr.isatty() else ["--quiet", "--progress-bar", "off"]


def remember(folder: str, layer: str) -> None:
    """Write the marker last and atomically: it is what makes the environment count as finished."""
    layers = dict(read_marker(folder).get("layers", {}))
    layers[layer] = digest(layer)
    temporary = os.path.join(folder, MARKER + ".part")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"layers": layers}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, os.path.join(folder, MARKER))


def run_quietly(command: Sequence[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def run_visibly(command: Sequence[str]) -> bool:
    """Run with all output on stderr, so that stdout stays free for --json."""
    return subprocess.run(command, stdout=sys.stderr.fileno()).returncode == 0


def run_or_fail(command: Sequence[str], what: str) -> None:
    if not run_visibly(command):
        raise BootstrapError(
            what + " Its own message is above.",
            "Check the connection to the package index (a mirror: PIP_INDEX_URL=...), then run the same "
            "command again: finished downloads are kept.",
        )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(error: BootstrapError, as_json: bool) -> int:
    """Show the error the way the CLI shows its own."""
    if as_json:
        fields = {"code": "environment", "message": error.what, "hint": error.hint}
        print(json.dumps({"error": fields}, indent=2))
    else:
        say(f"Error: {error.what}\n  next: {error.hint}")
    return EXIT_ENVIRONMENT
