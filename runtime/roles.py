"""What a process of a service is: which model's worker or stub, and how large."""

from __future__ import annotations

import psutil

from common.paths import home


def role_of(pid: int) -> str:
    """`worker M`, `stub MODEL`, or the program's name."""
    command = _command(pid)
    if model := _model_of_worker(command):
        return f"worker {model}"
    if command and command[0].endswith("triton_python_backend_stub"):
        return f"stub {_model_of_stub(command)}"
    return command[0].rsplit("/", 1)[-1] if command else "gone"


def worker_name(pid: int) -> str | None:
    """The model that a worker process serves; None for every other process."""
    return _model_of_worker(_command(pid))


def memory_of(pid: int) -> int:
    """Its memory in bytes, what it shares with others in proportion; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.Error:
        return 0


def _command(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def _model_of_worker(command: list[str]) -> str | None:
    if "worker" not in command or "--name" not in command[:-1]:
        return None
    return command[command.index("--name") + 1].removesuffix("-tensorrt_llm")


def _model_of_stub(command: list[str]) -> str:
    """The stub's first argument is MODEL_FOLDER/1/model.py; a backend's own is in the backend folder."""
    path = command[1] if len(command) > 1 else ""
    inside = path.removeprefix(str(home().repository)).strip("/")
    return inside.split("/")[0] if inside and not inside.startswith("..") else ""
