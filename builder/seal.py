"""The last step of a conversion: digests of every file, then the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from builder.engine import engine_key
from builder.manifest import (
    EngineInfo,
    FileEntry,
    Keys,
    Manifest,
    Model,
    Source,
    SourceFile,
    Tool,
    sha256_of,
    write_manifest,
)
from builder.package import LLM_ARGS, PARTS
from builder.prepare import Prepared
from builder.request import Progress
from common import atomic
from common.version import VERSION


def seal(
    folder: Path,
    prepared: Prepared,
    engine: EngineInfo,
    known: Mapping[str, FileEntry],
    report: Progress,
    *,
    created: str | None = None,
) -> Manifest:
    """Put every file on the disk, then write `ew.json`. Files without a digest in `known` are read once."""
    manifest = Manifest(
        tool=Tool(version=VERSION),
        created=created or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        keys=Keys(checkpoint=prepared.key, engine=_engine_key(prepared, engine)),
        source=_source(prepared),
        model=_model(prepared),
        layout=prepared.manifest_layout,
        sizes=prepared.sizes,
        runtime=prepared.target,
        plan=prepared.plan.summary(),
        engine=engine,
        files=_digests(folder, known, report),
    )
    write_manifest(folder, manifest)
    return manifest


def _digests(folder: Path, known: Mapping[str, FileEntry], report: Progress) -> dict[str, FileEntry]:
    paths = package_files(folder)
    total = sum(path.stat().st_size for path in paths)
    done, entries = 0, {}
    for path in paths:
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        entry = known.get(name)
        if entry is None or entry.bytes != size:
            entry = FileEntry(sha256=sha256_of(path), bytes=size)
        atomic.sync_file(path)
        entries[name] = entry
        done += size
        report("sealing", done, total)
    for parent in {path.parent for path in paths}:
        atomic.sync_folder(parent)
    return entries


def package_files(folder: Path) -> list[Path]:
    """The files that belong to a package, in a stable order; hidden files and folders are scratch."""
    inside = (path for part in PARTS for path in (folder / part).rglob("*"))
    files = [path for path in inside if path.is_file() and not _is_hidden(path.relative_to(folder))]
    extra = folder / LLM_ARGS
    return sorted([*files, extra] if extra.is_file() else files)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _engine_key(prepared: Prepared, engine: EngineInfo) -> str | None:
    if engine.state != "built":
        return None
    return engine_key(prepared, engine.compute_capability)


def _source(prepared: Prepared) -> Source:
    inspection = prepared.inspection
    return Source(
        model=prepared.source.model,
        kind="hub" if prepared.source.kind == "hub" else "path",
        path=str(inspection.folder.resolve()),
        revision=prepared.source.revision,
        digest=inspection.digest,
        files=[
            SourceFile(name=file.name, bytes=file.bytes, modified_ns=file.modified_ns)
            for file in inspection.weights
        ],
    )


def _model(prepared: Prepared) -> Model:
    inspection = prepared.inspection
    quantized = inspection.quantization
    return Model(
        architecture=inspection.architecture,
        family=inspection.family,
        model_type=inspection.model_type,
        quantization=prepared.request.quantization or (quantized.algorithm if quantized else None),
        reasons=inspection.reasons,
    )
