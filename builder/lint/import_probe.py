"""Import one model.py as Triton's stub does; standard library only, run in a process of its own.

    python -I -B import_probe.py MODEL.PY

Exit 0, or 1 with one line of JSON on stdout: what was raised, and the deepest line of the model's folder.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


class _Anything(type):
    """Any name of the utilities is a class, so that it can be a base, an exception or be called."""

    def __getattr__(cls, name: str) -> Any:
        return _Anything(name, (Exception,), {})


def main(path: Path) -> int:
    utilities: Any = ModuleType("triton_python_backend_utils")
    utilities.__getattr__ = lambda name: _Anything(name, (Exception,), {})
    sys.modules[utilities.__name__] = utilities
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # the process boundary: also a model that calls sys.exit
        print(json.dumps(_describe(error, path)))
        return 1
    return 0


def _describe(error: BaseException, path: Path) -> dict[str, Any]:
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename:
        return {"message": message, "file": error.filename, "line": error.lineno or 1}
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(path.parent)]
    last = inside[-1] if inside else None
    return {
        "message": message,
        "file": last.filename if last else str(path),
        "line": (last.lineno if last else None) or 1,
    }


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
