"""Write requirements/*.lock from requirements/*.in with uv: one lock for Python 3.10 to 3.12, with hashes."""

from __future__ import annotations

import subprocess
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "requirements"
# Resolution is universal; markers of platforms that ew does not run on are dropped again.
ELSEWHERE = ("sys_platform == 'win32'", "sys_platform == 'emscripten'", "python_full_version >= '3.13'")
UNUSED = ("openvino-telemetry==",)  # reports usage to its vendor; openvino runs without it


def compile_lock(source: str, *options: str) -> str:
    command = ["uv", "pip", "compile", "--universal", "--python-version", "3.10", "--generate-hashes"]
    command += ["--no-annotate", "--no-header", "--quiet", *options, str(FOLDER / source)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def entries(lock: str) -> list[str]:
    """One entry a package: its line and the hash lines that belong to it."""
    found: list[str] = []
    for line in lock.splitlines(keepends=True):
        if line.startswith(" ") and found:
            found[-1] += line
        elif not line.startswith("#"):
            found.append(line)
    return found


def wanted(entry: str) -> bool:
    line = entry.splitlines()[0]
    return not entry.startswith(UNUSED) and not any(marker in line for marker in ELSEWHERE)


def main() -> None:
    base = [entry for entry in entries(compile_lock("base.in")) if wanted(entry)]
    base += entries(compile_lock("nodeps.in", "--no-deps"))
    (FOLDER / "base.lock").write_text("".join(sorted(base)), encoding="utf-8")
    locked = {entry.splitlines()[0] for entry in base}
    constraint = FOLDER / "base.lock"
    dev = [
        entry for entry in entries(compile_lock("dev.in", "--constraint", str(constraint))) if wanted(entry)
    ]
    extra = [entry for entry in dev if entry.splitlines()[0] not in locked]
    (FOLDER / "dev.lock").write_text("".join(sorted(extra)), encoding="utf-8")


if __name__ == "__main__":
    main()
