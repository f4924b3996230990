"""What render would change in a repository, and which files somebody else changed.

`.ew-render.json` in the repository lists every file that render wrote, with its SHA-256. A file whose
content is neither that nor what is to be written has been edited by hand.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.repository_models import ModelFiles
from common.errors import RepositoryError

RECORD_NAME = ".ew-render.json"
SHOWN_CONFLICTS = 5


@dataclass(frozen=True)
class Record:
    """The content of `.ew-render.json`: model id -> file -> digests that are render's own.

    A file has two digests only while a render is under way, or after one that was interrupted.
    """

    models: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def digests(self, name: str) -> set[str]:
        return {digest for files in self.models.values() for digest in files.get(name, [])}

    def as_dict(self) -> dict[str, Any]:
        return {"format": 1, "models": self.models}


@dataclass(frozen=True)
class Changes:
    """Files relative to the repository. `conflicts` are also in `written` or `removed`."""

    written: dict[str, bytes]
    unchanged: list[str]
    removed: list[str]
    conflicts: list[str]
    record: Record
    pending: Record
    record_is_stale: bool

    @property
    def any(self) -> bool:
        return bool(self.written or self.removed or self.record_is_stale)

    def refuse_conflicts(self, repository: Path) -> None:
        """Raise RepositoryError (`hand_edited`) if a file would be lost that render did not write."""
        if not self.conflicts:
            return
        shown = ", ".join(str(repository / name) for name in self.conflicts[:SHOWN_CONFLICTS])
        more = (
            f" and {len(self.conflicts) - SHOWN_CONFLICTS} more"
            if len(self.conflicts) > SHOWN_CONFLICTS
            else ""
        )
        raise RepositoryError(
            f"Not overwritten, because render did not write it like this: {shown}{more}.",
            why="Changed by hand, or made by something else.",
            hint="Put the change under models.ID.triton in deploy/config.json; ./ew render --diff shows it, "
            "--force overwrites it.",
            code="hand_edited",
        )


def read_record(repository: Path) -> Record:
    """The record of a repository; empty where there is none.

    Raises:
        RepositoryError: it is there and not readable.
    """
    path = repository / RECORD_NAME
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        return Record({str(model): _digest_lists(files) for model, files in models.items()})
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(
            f"{path} is not readable: {error}.",
            hint="Delete it and run ./ew render --force.",
            code="record_invalid",
        ) from None


def plan_changes(repository: Path, models: list[ModelFiles], *, keep_others: bool) -> Changes:
    """Compare the wanted files with the repository.

    Args:
        keep_others: leave models alone that are in the record and not in `models`; else they are removed.
    """
    record = read_record(repository)
    wanted = {name: content for model in models for name, content in model.files.items()}
    digests = {name: digest_of(content) for name, content in wanted.items()}
    rendered = {model.model_id for model in models}
    kept = {model: files for model, files in record.models.items() if keep_others and model not in rendered}
    written, unchanged, conflicts = {}, [], []
    for name, content in sorted(wanted.items()):
        found = digest_of_file(repository / name)
        if found == digests[name]:
            unchanged.append(name)
            continue
        written[name] = content
        if found is not None and found not in record.digests(name):
            conflicts.append(name)
    removed = sorted(
        _to_remove(repository, record, {*wanted, *(name for files in kept.values() for name in files)})
    )
    conflicts += [name for name in removed if digest_of_file(repository / name) not in record.digests(name)]
    final = {model.model_id: {name: [digests[name]] for name in model.files} for model in models}
    new = Record({**kept, **final})
    return Changes(written, unchanged, removed, conflicts, new, _both(record, Record(final)), new != record)


def diff(repository: Path, changes: Changes) -> Iterator[str]:
    """Unified diff lines from what is there to what render would write."""
    for name in sorted({*changes.written, *changes.removed}):
        before = _lines(repository / name)
        after = _text_lines(changes.written[name]) if name in changes.written else []
        old = name if (repository / name).exists() else "/dev/null"
        new = name if name in changes.written else "/dev/null"
        yield from difflib.unified_diff(before, after, old, new, lineterm="")


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of_file(path: Path) -> str | None:
    """SHA-256 of a file, None where there is no file."""
    try:
        return digest_of(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _to_remove(repository: Path, record: Record, wanted: set[str]) -> Iterator[str]:
    recorded = {name for files in record.models.values() for name in files}
    return (name for name in recorded - wanted if (repository / name).exists())


def _both(old: Record, new: Record) -> Record:
    """Both records in one: what a file may be while the change is under way."""
    models = {
        model: {name: list(digests) for name, digests in files.items()} for model, files in old.models.items()
    }
    for model, files in new.models.items():
        for name, digests in files.items():
            known = models.setdefault(model, {}).setdefault(name, [])
            known.extend(digest for digest in digests if digest not in known)
    return Record(models)


def _digest_lists(files: dict[str, list[str]]) -> dict[str, list[str]]:
    """Checked form of one model's files: names must not lead out of the repository."""
    for name in files:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or len(parts) < 2:
            raise ValueError(f"{name!r} is outside the repository")
    return {name: [str(digest) for digest in digests] for name, digests in files.items()}


def _lines(path: Path) -> list[str]:
    return _text_lines(path.read_bytes()) if path.is_file() else []


def _text_lines(content: bytes) -> list[str]:
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError:
        return [f"({len(content)} bytes, SHA-256 {digest_of(content)})"]
