"""A file for bug reports: the report, configuration, repository and logs, with secrets removed."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.errors import ResourceError
from common.paths import home
from runtime import logs
from runtime.doctor.examine import Report
from runtime.doctor.redact import redact

LOG_BYTES = 2 << 20  # of each log, its end
SUFFIXES = (".pbtxt", ".json", ".yaml", ".jinja")


def write_bundle(report: Report, target: Path) -> list[str]:
    """Write a tar.gz that only this user can read; returns the names inside. Keys and weights never go in.

    Raises:
        ResourceError: the file cannot be written.
    """
    members = list(_members(report))
    try:
        _write(target, members)
    except OSError as error:
        raise ResourceError(
            f"{target} cannot be written.", why=f"{error}.", hint="Name another place."
        ) from None
    return [name for name, _ in members]


def _members(report: Report) -> Iterator[tuple[str, str]]:
    user_home = os.path.expanduser("~")
    yield "report.json", redact(json.dumps(report.as_dict(), indent=2, ensure_ascii=False), user_home)
    for path in _files():
        text = _end_of(path)
        yield str(path.relative_to(home().root)), redact(text, user_home)


def _files() -> Iterator[Path]:
    """Configuration, state and logs; run/keys.json and run/api_key are left out altogether."""
    single = [home().config, home().run / "service.json"]
    past = [path for name in logs.LOGS for path in sorted(home().logs.glob(f"{name}.log*"))]
    rendered = sorted(path for path in home().repository.rglob("*") if _tells(path))
    yield from (path for path in [*single, *past, *rendered] if path.is_file())


def _tells(path: Path) -> bool:
    """Small files that say how a repository is configured; tokenizers are large and may be private."""
    return path.suffix in SUFFIXES and "tokenizer" not in path.parts


def _end_of(path: Path) -> str:
    """The end of a file; of one that belongs to another user, why it is missing."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"{error}\n"


def _write(target: Path, members: list[tuple[str, str]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for inside, text in members:
                _add(archive, f"ew-bundle/{inside}", text.encode("utf-8"))
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
    archive.addfile(member, io.BytesIO(data))
