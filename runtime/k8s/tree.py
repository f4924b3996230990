"""The folder that `kubectl apply -k` takes: base, components and one overlay."""

from __future__ import annotations

import shutil
from pathlib import Path

from common import atomic
from common.errors import UsageError
from runtime.k8s.overlay import TREE, Rendered

PARTS = ("base", "components")


def write_tree(rendered: Rendered, output: Path) -> list[Path]:
    """Write OUTPUT/{base,components,overlays/NAME}; files there are replaced.

    Returns:
        What was written, relative to `output`.

    Raises:
        UsageError: the place holds something that is no tree of ours.
    """
    _refuse_foreign(output)
    written = _copy_parts(output) if output.resolve() != TREE.resolve() else []
    folder = output / "overlays" / rendered.pool.overlay
    for name, text in rendered.files.items():
        atomic.write_text(folder / name, text)
        written.append((folder / name).relative_to(output))
    return written


def _refuse_foreign(output: Path) -> None:
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if output.is_file() or (there and "base" not in there):
        raise UsageError(
            f"{output} holds something else.",
            hint="Give --output an empty or new folder.",
            code="output_taken",
        )


def _copy_parts(output: Path) -> list[Path]:
    for part in PARTS:
        shutil.copytree(TREE / part, output / part, dirs_exist_ok=True)
    copied = [path for part in PARTS for path in sorted((output / part).rglob("*")) if path.is_file()]
    return [path.relative_to(output) for path in copied]
