"""The backend folder that tritonserver is pointed at: our bridge, and the stock Python backend beside it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from common.errors import EnvironmentProblem

SOURCE_ROOT = Path(__file__).resolve().parent.parent
# What a bridge consists of, wherever it is put: beside each other in one folder.
BRIDGE_FILES = (
    *sorted((SOURCE_ROOT / "templates" / "bridge").glob("*.py")),
    SOURCE_ROOT / "worker" / "protocol.py",
)


def pytriton_folder() -> Path:
    """The installed package `pytriton`; not imported, because that alone takes seconds.

    Raises:
        EnvironmentProblem: nvidia-pytriton is not installed.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentProblem(
            "tritonserver is not installed here.",
            why=f"{sys.executable} has no package nvidia-pytriton.",
            hint="Run ./ew setup --engine cpu.",
            code="tritonserver_missing",
        )
    return Path(spec.submodule_search_locations[0])


def install_backend(folder: Path) -> Path:
    """Make `folder` usable as tritonserver's `--backend-directory` and return it.

    It then serves `backend: "tensorrtllm"` with the bridge and `backend: "python"` with the Python backend of
    the nvidia-pytriton wheel. Files that are up to date stay, so a running server is not disturbed.

    tritonserver needs, beside `--backend-directory=FOLDER`, the environment
    `LD_LIBRARY_PATH=<site-packages>/nvidia_pytriton.libs[:folder of libpython3.X.so.1.0]` and a `PATH` that
    begins with the `bin` folder of this Python, from which the stub takes its standard library and numpy.

    Raises:
        EnvironmentProblem: nvidia-pytriton is not installed, or has no stub for this Python version.
    """
    server = pytriton_folder() / "tritonserver"
    stub = server / "python_backend_stubs" / _python_version() / "triton_python_backend_stub"
    if not stub.is_file():
        raise EnvironmentProblem(
            f"tritonserver cannot run Python {_python_version()} models.",
            why=f"There is no {stub}.",
            hint="Use Python 3.10, 3.11 or 3.12: ./ew setup --engine cpu.",
            code="stub_missing",
        )
    python_backend = server / "backends" / "python"
    for source in BRIDGE_FILES:
        _copy(source, folder / "tensorrtllm" / source.name)
    # Copies, not links: Triton refuses a backend library that leads out of the backend directory.
    names = ("libtriton_python.so", "triton_python_backend_utils.py")
    for source in (stub, *(python_backend / name for name in names)):
        _copy(source, folder / "python" / source.name)
    return folder


def _python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _copy(source: Path, target: Path) -> None:
    """Copy unless `target` already equals `source`; readers see the old file or the new one."""
    if target.is_file() and _same(source, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    shutil.copy2(source, name)
    os.replace(name, target)


def _same(source: Path, target: Path) -> bool:
    old, new = target.stat(), source.stat()
    return old.st_size == new.st_size and source.read_bytes() == target.read_bytes()
