"""Packages on disk: load, verify, list.

A package is a folder with a valid `ew.json`. Loading checks what is cheap (manifest, sizes); verifying
reads every byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.gate import ServerVersions, check_loadable
from builder.gpus import Gpu
from builder.manifest import MANIFEST_NAME, Manifest, not_a_package, read_manifest, sha256_of
from common.errors import PackageError, UsageError

__all__ = ["Package", "Problem", "ServerVersions", "find_packages", "load_package", "not_a_package"]

CHECKPOINT = "checkpoint"
TOKENIZER = "tokenizer"
ENGINE = "engine"
LLM_ARGS = "llm_args.json"
QUANTIZED = "quantized"
PARTS = (CHECKPOINT, TOKENIZER, ENGINE, QUANTIZED)


@dataclass(frozen=True)
class Problem:
    """One file that is not as the manifest says."""

    file: str
    what: str


@dataclass(frozen=True)
class Package:
    """A package whose manifest was read and whose files are there in the right sizes."""

    folder: Path
    manifest: Manifest

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER

    @property
    def engine(self) -> Path:
        return self.folder / ENGINE

    @property
    def has_engine(self) -> bool:
        return self.manifest.engine.state == "built"

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files.values())

    def problems(self, *, progress: Callable[[int, int], None] | None = None) -> Iterator[Problem]:
        """Compare every file's size and SHA-256 with the manifest; `progress` gets (bytes done, total)."""
        done = 0
        for name, entry in self.manifest.files.items():
            path = self.folder / name
            what = _size_problem(path, entry.bytes)
            if what is None and sha256_of(path) != entry.sha256:
                what = "its content changed (SHA-256 differs)"
            if what:
                yield Problem(name, what)
            done += entry.bytes
            if progress:
                progress(done, self.bytes)
        yield from (Problem(name, "is not in the manifest") for name in self._strangers())

    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Raise PackageError (`package_damaged`) if any file is missing, changed or added."""
        problems = list(self.problems(progress=progress))
        if problems:
            raise damaged(self.folder, problems)

    def check_loadable(self, server: ServerVersions, gpu: Gpu | None = None) -> None:
        """Raise PackageError if a server with these versions and this GPU cannot load the package."""
        check_loadable(str(self.folder), self.manifest, server, gpu)

    def _strangers(self) -> list[str]:
        """Files inside the package's own folders that the manifest does not list."""
        paths = (path for part in PARTS for path in sorted((self.folder / part).rglob("*")) if path.is_file())
        names = (path.relative_to(self.folder).as_posix() for path in paths)
        return [name for name in names if name not in self.manifest.files]


def load_package(folder: Path) -> Package:
    """Open a package: valid manifest, every file there in its size. Digests are left to `Package.verify`.

    Raises:
        PackageError: `package_missing`, `not_a_package`, `manifest_invalid` or `package_damaged`.
    """
    package = Package(folder, read_manifest(folder))
    _refuse_paths_outside(package)
    sizes = (
        (name, _size_problem(folder / name, entry.bytes)) for name, entry in package.manifest.files.items()
    )
    problems = [Problem(name, what) for name, what in sizes if what]
    if problems:
        raise damaged(folder, problems)
    return package


def find_packages(folder: Path) -> list[Package]:
    """The packages directly inside `folder`, or `folder` itself; damaged ones are left out.

    Raises:
        UsageError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise UsageError(
            f"There is no folder {folder}.",
            hint="Name a folder of packages.",
            code="package_missing",
        )
    places = [folder] if (folder / MANIFEST_NAME).is_file() else sorted(folder.glob(f"*/{MANIFEST_NAME}"))
    found = []
    for place in places:
        try:
            found.append(load_package(place if place.is_dir() else place.parent))
        except PackageError:
            continue
    return found


def damaged(folder: Path, problems: list[Problem]) -> PackageError:
    shown = "; ".join(f"{problem.file} {problem.what}" for problem in problems[:3])
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return PackageError(
        f"The package {folder} is damaged.",
        why=f"{shown}{more}.",
        hint="Convert the model again with --force, or copy the package again.",
        code="package_damaged",
    )


def _size_problem(path: Path, expected: int) -> str | None:
    try:
        found = path.stat().st_size
    except OSError:
        return "is missing"
    return None if found == expected else f"has {found} bytes instead of {expected}"


def _refuse_paths_outside(package: Package) -> None:
    """A manifest may come from anywhere: its names must not lead out of the folder."""
    for name in package.manifest.files:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or not parts:
            raise PackageError(
                f"{package.folder / MANIFEST_NAME} lists {name!r}, which is outside the package.",
                hint="Do not use this package; make it again from its source.",
                code="manifest_invalid",
            )
