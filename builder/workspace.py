"""The output folder while a conversion works in it: one writer, resumable, nothing foreign touched."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builder.manifest import MANIFEST_NAME
from builder.package import LLM_ARGS, PARTS
from common import atomic
from common.errors import PackageError, ResourceError

WORK = ".ew"
STATE = "state.json"
# what may lie in an output folder: our own, and what a fresh volume holds
OWN = (*PARTS, MANIFEST_NAME, LLM_ARGS, WORK, "lost+found")


class Workspace:
    """The folder of one package. Use only inside `locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def work(self) -> Path:
        """Scratch inside the package: lock, state, logs; no part of it."""
        return self.folder / WORK

    def state(self) -> dict[str, Any]:
        """What an unfinished conversion wrote down; empty when there is none."""
        try:
            document = json.loads((self.work / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def begin(self, state: dict[str, Any], *, resume: bool) -> bool:
        """Get ready to write; True when an interrupted conversion of the same inputs goes on.

        Afterwards the folder is not a package until a manifest is written.
        """
        going_on = resume and self.state() == state
        self.forget_manifest()
        if not going_on:
            self.clear()
            atomic.write_json(self.work / STATE, state)
        return going_on

    def fresh_scratch(self, part: str) -> Path:
        """An empty folder to make a part of the package in."""
        scratch = self.work / part
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        return scratch

    def place(self, part: str) -> None:
        """Put a part made in scratch space where it belongs; the manifest must not list the old one."""
        shutil.rmtree(self.folder / part, ignore_errors=True)
        (self.work / part).rename(self.folder / part)
        atomic.sync_folder(self.folder)

    def finish(self) -> None:
        """The manifest is written: no state is needed any more."""
        (self.work / STATE).unlink(missing_ok=True)

    def forget_manifest(self) -> None:
        """First of all the folder stops being a package, durably."""
        manifest = self.folder / MANIFEST_NAME
        if manifest.exists():
            manifest.unlink()
            atomic.sync_folder(self.folder)

    def clear(self) -> None:
        """Remove what a conversion makes, and nothing else."""
        for part in PARTS:
            shutil.rmtree(self.folder / part, ignore_errors=True)
        (self.folder / LLM_ARGS).unlink(missing_ok=True)

    def refuse_foreign(self) -> None:
        """Refuse a folder that holds anything but a package or an unfinished one."""
        strangers = sorted(path.name for path in self.folder.iterdir() if path.name not in OWN)
        if strangers and not (self.folder / MANIFEST_NAME).exists() and not self.state():
            raise PackageError(
                f"{self.folder} is not empty and not a package.",
                why=f"It holds {', '.join(strangers[:3])}{' ...' if len(strangers) > 3 else ''}.",
                hint="Give an empty or new folder as --output.",
                code="output_not_empty",
            )


@contextlib.contextmanager
def locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[Workspace]:
    """Make the folder if needed and hold its lock; a second conversion waits, and a killed one lets go.

    Raises:
        ResourceError: no permission, or the path is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        space = Workspace(folder)
        space.refuse_foreign()
        space.work.mkdir(exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    with hold(space.work / "lock", on_wait):
        yield space


@contextlib.contextmanager
def hold(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock on `path`; calls `on_wait` once when somebody else has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot_write(path.parent, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, error: OSError) -> ResourceError:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return ResourceError(
            f"{folder} cannot be made: a file is in the way.",
            hint="Give another folder as --output.",
            code="output_is_file",
        )
    return ResourceError(
        f"{folder} cannot be written.",
        why=error.strerror or str(error),
        hint="Give a folder you may write to as --output.",
        code="permission" if isinstance(error, PermissionError) else "output_not_writable",
    )
