"""Put changes into a repository: everything is staged beside it first, then renamed into place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builder.repository_changes import RECORD_NAME, Changes
from common import atomic
from common.errors import ResourceError

READABLE_FOLDER = 0o755
SYNC_THREADS = 8


@contextlib.contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Only one render at a time; a second one waits."""
    with _storage_errors(repository):
        repository.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def apply_changes(repository: Path, changes: Changes) -> None:
    """Write, replace and remove files; call inside `locked`.

    Whatever fails while files are staged leaves the repository as it was. From then on only renames follow;
    the record on disk knows both states, so that an interrupted run can simply be run again.

    Raises:
        ResourceError: disk full, no permission, read-only.
    """
    with _storage_errors(repository), _staging(repository) as staging:
        _stage(staging, changes.written)
        atomic.write_json(repository / RECORD_NAME, changes.pending.as_dict())
        _move_into_place(staging, repository, changes)
        for name in changes.removed:
            (repository / name).unlink(missing_ok=True)
            _prune(repository, (repository / name).parent)
        atomic.write_json(repository / RECORD_NAME, changes.record.as_dict())


def _stage(staging: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(content)
    # Side by side, because file systems put syncs that wait together into one commit.
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(_sync, (staging / name for name in files)))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _move_into_place(staging: Path, repository: Path, changes: Changes) -> None:
    for folder in sorted({name.split("/", 1)[0] for name in changes.written}):
        if not (repository / folder).exists():
            os.rename(staging / folder, repository / folder)
    for name in changes.written:
        if (staging / name).exists():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / name, repository / name)
    atomic.sync_folder(repository)


@contextlib.contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A folder on the repository's file system: beside it, or hidden inside it where that cannot be."""
    parent = repository.parent
    beside = os.access(parent, os.W_OK) and parent.stat().st_dev == repository.stat().st_dev
    folder = Path(
        tempfile.mkdtemp(dir=parent if beside else repository, prefix=f".{repository.name}.staging-")
    )
    folder.chmod(READABLE_FOLDER)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prune(repository: Path, folder: Path) -> None:
    """Remove folders that are empty but for Python's caches, up to the repository."""
    while folder != repository:
        left = list(folder.iterdir()) if folder.is_dir() else []
        if any(entry.name != "__pycache__" for entry in left):
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder = folder.parent


@contextlib.contextmanager
def _storage_errors(repository: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "Free some space." if error.errno == errno.ENOSPC else "Check owner, permissions and mounts."
        raise ResourceError(
            f"The model repository {repository} cannot be written.",
            why=f"{error.strerror}: {error.filename}." if error.filename else f"{error.strerror}.",
            hint=hint,
            code="disk_full" if error.errno == errno.ENOSPC else "not_writable",
        ) from None
