"""Which Python can carry the base environment, and where its shared library is. Standard library only.

Runs under any Python 3.7 or later, because the launcher uses it before there is an environment.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from typing import NamedTuple

SUPPORTED = ((3, 10), (3, 11), (3, 12))
SUPPORTED_TEXT = "Python 3.10, 3.11 or 3.12"
MINIMUM_GLIBC = (2, 35)  # the tag of nvidia-pytriton's wheel
# Asks a Python about itself: run, not guessed, because shims on the path may start nothing.
PROBE = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps({
    "version": list(sys.version_info[:2]), "executable": sys.executable, "prefix": sys.base_prefix,
    "libdir": sysconfig.get_config_var("LIBDIR") or "",
    "multiarch": sysconfig.get_config_var("MULTIARCH") or "",
    "venv": bool(importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")),
}))
"""


class Python(NamedTuple):
    """One interpreter: `library` is the folder of its libpython, or "" when it has none."""

    executable: str
    version: tuple[int, int]
    has_venv: bool
    library: str

    @property
    def supported(self) -> bool:
        return self.version in SUPPORTED

    @property
    def name(self) -> str:
        return f"Python {self.version[0]}.{self.version[1]} ({self.executable})"


def library_name(version: tuple[int, int]) -> str:
    """The file that Triton's Python stub links against."""
    return f"libpython{version[0]}.{version[1]}.so.1.0"


def library_package(version: tuple[int, int]) -> str:
    """What to install when the library is missing, for the two common families of distributions."""
    dotted = f"{version[0]}.{version[1]}"
    return f"libpython{dotted} (apt install libpython{dotted}) or, on Fedora and RHEL, python{dotted}-libs"


def inspect_python(command: str) -> Python | None:
    """Run `command` and ask it; None when it does not start or is no Python 3."""
    try:
        done = subprocess.run(
            [command, "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=True
        )
        facts = json.loads(done.stdout.decode("utf-8"))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    version = (facts["version"][0], facts["version"][1])
    folders = [facts["libdir"], os.path.join(facts["prefix"], "lib")]
    folders.append(os.path.join("/usr/lib", facts["multiarch"]))
    return Python(facts["executable"], version, facts["venv"], find_library(version, folders))


def find_library(version: tuple[int, int], folders: list[str]) -> str:
    """The folder that holds libpython: one of `folders`, or the loader's own search path."""
    name = library_name(version)
    for folder in folders:
        if folder and os.path.isfile(os.path.join(folder, name)):
            return folder
    for line in _loader_cache():
        if line.strip().startswith(name):
            return os.path.dirname(line.rsplit("=>", 1)[-1].strip())
    return ""


def _loader_cache() -> list[str]:
    tool = shutil.which("ldconfig") or "/sbin/ldconfig"
    try:
        done = subprocess.run([tool, "-p"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.decode("utf-8", "replace").splitlines()


def candidates() -> list[str]:
    """Interpreters to try, best first: EW_PYTHON, the running one, versioned names, uv's."""
    chosen = os.environ.get("EW_PYTHON")
    if chosen:
        return [chosen]
    found = [sys.executable]
    for _, minor in reversed(SUPPORTED):
        found += _on_path(f"python3.{minor}")
    found += _uv_pythons()
    return list(dict.fromkeys(name for name in found if name))


def _on_path(name: str) -> list[str]:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    paths = [os.path.join(folder, name) for folder in folders if folder]
    return [path for path in paths if os.access(path, os.X_OK)]


def _uv_pythons() -> list[str]:
    uv = shutil.which("uv")
    if not uv:
        return []
    found = []
    for major, minor in reversed(SUPPORTED):
        done = subprocess.run(
            [uv, "python", "find", "--no-python-downloads", f"{major}.{minor}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        found += done.stdout.decode("utf-8").split("\n")[:1] if done.returncode == 0 else []
    return found


def machine_problem() -> str:
    """Why no environment can work on this machine, or "" when one can."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"ew needs Linux on x86-64; this is {platform.system()} on {platform.machine()}."
    library, version = platform.libc_ver()
    if library == "glibc" and _numbers(version) < MINIMUM_GLIBC:
        wanted = ".".join(str(number) for number in MINIMUM_GLIBC)
        return f"tritonserver needs glibc {wanted} (Ubuntu 22.04, Debian 12) or later; here is {version}."
    if library != "glibc":
        return "tritonserver needs a Linux with glibc (Ubuntu 22.04, Debian 12 or later)."
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
