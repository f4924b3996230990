"""Never convert the same thing twice: content keys, and an index from key to finished packages.

The index holds only where packages are; it costs no disk space. A hit is used after proof: the package is
whole, none of its files was touched after its manifest, and the source is unchanged (size and modification
time of every weight file) or equal byte for byte. Anything else is a miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from builder.inspect import Inspection
from builder.manifest import MANIFEST_NAME, FileEntry, Source
from builder.package import Package, load_package
from builder.workspace import hold
from common import atomic
from common.errors import EwError

CHECKPOINT_FORMAT = 1
COMPARE_BLOCK = 4 * 2**20


def content_key(**parts: Any) -> str:
    """SHA-256 of the canonical JSON of everything that decides the output's bytes."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class PackageIndex:
    """Where the packages of each checkpoint and engine key are. A missing or broken entry is only a miss."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remember(self, key: str, package: Path) -> None:
        """Add a package; failing to write the index never fails a conversion."""
        places = [package.resolve(), *(place for place in self.places(key) if place != package.resolve())]
        with contextlib.suppress(OSError):
            atomic.write_json(self._entry(key), [str(place) for place in places])

    def places(self, key: str) -> list[Path]:
        try:
            names = json.loads(self._entry(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [Path(name) for name in names if isinstance(name, str)]

    def find(self, key: str, inspection: Inspection) -> Package | None:
        """A whole, untouched package with this key from this very source, or None."""
        equal = (package for package in self._whole(key) if package.manifest.keys.checkpoint == key)
        return next((package for package in equal if is_from(package, inspection)), None)

    def find_engine(self, key: str) -> Package | None:
        """A whole, untouched package whose engine has this key, or None."""
        found = (package for package in self._whole(key) if package.manifest.keys.engine == key)
        return next(found, None)

    @contextlib.contextmanager
    def converting(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Only one at a time converts a key; without a writable index nobody has to wait."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            yield
            return
        with hold(self.folder / f"{key}.lock", on_wait):
            yield

    def _whole(self, key: str) -> Iterator[Package]:
        for place in self.places(key):
            with contextlib.suppress(EwError, OSError):
                package = load_package(place)
                if untouched(package):
                    yield package

    def _entry(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def untouched(package: Package) -> bool:
    """No file of the checkpoint was modified after the manifest was written."""
    written = (package.folder / MANIFEST_NAME).stat().st_mtime_ns
    files = (package.folder / name for name in package.manifest.files)
    return all(path.stat().st_mtime_ns <= written for path in files)


def is_from(package: Package, inspection: Inspection) -> bool:
    """Whether the package was made from exactly the weights that are inspected now."""
    recorded = package.manifest.source
    if recorded.digest != inspection.digest:
        return False
    now = [(file.name, file.bytes, file.modified_ns) for file in inspection.weights]
    then = [(file.name, file.bytes, file.modified_ns) for file in recorded.files]
    return now == then or _same_bytes(recorded, inspection)


def _same_bytes(recorded: Source, inspection: Inspection) -> bool:
    """Compare with the recorded source itself, if that is still what it was and is another folder."""
    folder = Path(recorded.path)
    if folder.resolve() == inspection.folder.resolve():
        return False
    for file in recorded.files:
        try:
            status = (folder / file.name).stat()
        except OSError:
            return False
        if (status.st_size, status.st_mtime_ns) != (file.bytes, file.modified_ns):
            return False
    return all(_equal(folder / file.name, inspection.folder / file.name) for file in recorded.files)


def _equal(first: Path, second: Path) -> bool:
    if first.samefile(second):
        return True
    with first.open("rb") as one, second.open("rb") as other:
        while True:
            block = one.read(COMPARE_BLOCK)
            if block != other.read(COMPARE_BLOCK):
                return False
            if not block:
                return True


def link_part(package: Package, part: str, target: Path) -> dict[str, FileEntry]:
    """Put `part` of another package into the folder `target`: hard links, else copies.

    Returns:
        The entries of its files, named as in the manifest.
    """
    target.mkdir(parents=True, exist_ok=True)
    entries = {name: entry for name, entry in package.manifest.files.items() if name.startswith(f"{part}/")}
    for name in entries:
        destination = target / Path(name).relative_to(part)
        destination.parent.mkdir(parents=True, exist_ok=True)
        _link(package.folder / name, destination)
    atomic.sync_folder(target)
    return entries


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        partial = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, partial)
        atomic.sync_file(partial)
        partial.replace(target)
