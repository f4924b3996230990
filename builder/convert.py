"""Hugging Face checkpoint to package: inspect, plan, write, seal. The only entry point is `convert`."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from builder import cache
from builder.checkpoint import CheckpointReport, write_checkpoint
from builder.engine import next_engine, outlook, without_engine, write_llm_args
from builder.manifest import FileEntry, Manifest
from builder.package import CHECKPOINT, TOKENIZER, Package, load_package
from builder.prepare import Prepared, prepare
from builder.request import Action, ConvertRequest, ConvertResult, Progress
from builder.seal import seal
from builder.tokenizer_files import copy_tokenizer
from builder.workspace import Workspace, locked
from common.atomic import sync_file
from common.errors import Interrupted, PackageError, ResourceError
from common.paths import home
from common.tensors import write_error

DISK_MARGIN = 64 * 2**20
DISK_BLOCK = 512


def convert(request: ConvertRequest, *, progress: Progress | None = None) -> ConvertResult:
    """Make the package that `request` describes, or find that it is there already.

    Safe to interrupt at any moment and to run twice at once: the folder is a package only when all of it
    is on the disk, and the same call goes on where the last one stopped.

    Raises:
        EwError: any of its kinds, before a byte is written wherever that can be foreseen.
    """
    report = progress or _silent
    started = time.monotonic()
    try:
        prepared = prepare(request, report)
        if request.stage == "plan":
            return _result("planned", prepared, None, started)
        with locked(request.output, lambda: report("waiting for another conversion", 0, 0)) as space:
            action, manifest, notes = _make(prepared, space, report)
        return _result(action, prepared, manifest, started, notes)
    except KeyboardInterrupt:
        raise Interrupted() from None
    except OSError as error:
        raise write_error(Path(error.filename or request.output), error) from error


def _silent(phase: str, done: int, total: int) -> None:
    """Progress of a caller that wants none."""


def _make(prepared: Prepared, space: Workspace, report: Progress) -> tuple[Action, Manifest, tuple[str, ...]]:
    """Bring the locked folder to what is asked for; reuse what is there. Warnings come last."""
    index = cache.PackageIndex(prepared.request.cache or home().cache / "packages")
    present = _present(prepared, space)
    if present is not None:
        space.finish()
        return "reused", _follow_up(prepared, space, index, present.manifest, report), ()
    with index.converting(prepared.key, lambda: report("waiting for the same conversion elsewhere", 0, 0)):
        action, known, notes = _write_checkpoint(prepared, space, index, report)
        copy_tokenizer(prepared.inspection.folder, space.folder / TOKENIZER)
        write_llm_args(prepared, space)
        manifest = seal(space.folder, prepared, outlook(prepared, space.folder), known, report)
        space.finish()
        index.remember(prepared.key, space.folder)
    return action, _follow_up(prepared, space, index, manifest, report), notes


def _follow_up(
    prepared: Prepared, space: Workspace, index: cache.PackageIndex, manifest: Manifest, report: Progress
) -> Manifest:
    """The package is whole without its engine; add or renew that, and seal again if anything changed."""
    rewritten = write_llm_args(prepared, space)
    engine = next_engine(prepared, space, index, manifest, report)
    is_other_engine = rewritten or engine != manifest.engine
    if not is_other_engine and (prepared.sizes, prepared.target) == (manifest.sizes, manifest.runtime):
        return manifest
    known = without_engine(manifest.files) if is_other_engine else manifest.files
    sealed = seal(space.folder, prepared, engine, known, report, created=manifest.created)
    if sealed.keys.engine:
        index.remember(sealed.keys.engine, space.folder)
    return sealed


def _present(prepared: Prepared, space: Workspace) -> Package | None:
    """The package that is there already, if it is this one; refuses to overwrite another without --force."""
    force = prepared.request.force
    try:
        package = load_package(space.folder)
    except PackageError as error:
        if error.code == "not_a_package" or force:
            return None
        raise
    if force:
        return None
    if package.manifest.keys.checkpoint == prepared.key:
        return _proven(package, prepared)
    raise PackageError(
        f"{space.folder} holds another package.",
        why=_difference(package.manifest, prepared),
        hint="Give another --output, or replace it with --force.",
        code="output_holds_other_package",
    )


def _proven(package: Package, prepared: Prepared) -> Package | None:
    """A package with the right key, if it still is what it was; None converts the changed source again."""
    if not cache.is_from(package, prepared.inspection):
        return None
    if not cache.untouched(package):
        package.verify()
    return package


def _difference(manifest: Manifest, prepared: Prepared) -> str:
    layout = manifest.layout
    was = f"{manifest.source.model} ({layout.dtype}, tp {layout.tp_size}, pp {layout.pp_size})"
    request = prepared.request
    now = f"{request.model} ({request.dtype}, tp {request.tp_size}, pp {request.pp_size})"
    return f"It was made from {was}." if was != now else f"{request.model} or an option has changed since."


def _write_checkpoint(
    prepared: Prepared, space: Workspace, index: cache.PackageIndex, report: Progress
) -> tuple[Action, dict[str, FileEntry], tuple[str, ...]]:
    """Convert, go on converting, or link from an equal package; returns digests known by then, warnings."""
    request = prepared.request
    found = None if request.force else index.find(prepared.key, prepared.inspection)
    going_on = space.begin(_state(prepared), resume=request.resume)
    if not prepared.writes_checkpoint:
        return "converted", {}, ()
    if found is not None and found.folder.resolve() != space.folder.resolve():
        return "linked", cache.link_part(found, CHECKPOINT, space.folder / CHECKPOINT), ()
    _foresee_disk(prepared, space)
    written = write_checkpoint(
        prepared.inspection.folder,
        space.folder / CHECKPOINT,
        prepared.layout,
        model_type=request.model_type,
        progress=lambda done, total: report("converting", done, total),
        workers=request.workers,
        resume=going_on,
        allow_pickle=request.allow_pickle,
        digests=True,
    )
    return ("resumed" if going_on else "converted"), _entries(written), _overflow_warning(written, request)


def _overflow_warning(written: CheckpointReport, request: ConvertRequest) -> tuple[str, ...]:
    if not written.overflows:
        return ()
    count, tensor = sum(written.overflows.values()), next(iter(written.overflows))
    return (
        f"{count} weights are too large for {request.dtype} and became infinite (first in {tensor}):"
        " answers will be broken. Convert with --dtype bfloat16.",
    )


def _entries(written: CheckpointReport) -> dict[str, FileEntry]:
    """The digests taken while writing, for files that are now on the disk."""
    entries = {}
    for path in written.files:
        sync_file(path)
        entry = FileEntry(sha256=written.sha256[path.name], bytes=path.stat().st_size)
        entries[f"{CHECKPOINT}/{path.name}"] = entry
    return entries


def _state(prepared: Prepared) -> dict[str, object]:
    """What must be equal for an interrupted conversion to go on: the key and the untouched source."""
    files = [[file.name, file.bytes, file.modified_ns] for file in prepared.inspection.weights]
    return {"key": prepared.key, "source": str(prepared.inspection.folder.resolve()), "files": files}


def _foresee_disk(prepared: Prepared, space: Workspace) -> None:
    """Refuse before writing when the checkpoint cannot fit; what a resumed one already has counts."""
    needed = int(prepared.plan["checkpoint_bytes"]) + DISK_MARGIN
    files = [path for path in (space.folder / CHECKPOINT).rglob("*") if path.is_file()]
    there = sum(path.stat().st_blocks * DISK_BLOCK for path in files)
    free = shutil.disk_usage(space.folder).free
    if needed - there > free:
        raise ResourceError(
            f"Not enough disk space in {space.folder}.",
            why=f"The checkpoint needs {_gib(needed - there)}; {_gib(free)} are free.",
            hint="Free some space or give an --output on another disk.",
            code="no_space",
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _result(
    action: Action,
    prepared: Prepared,
    manifest: Manifest | None,
    started: float,
    notes: tuple[str, ...] = (),
) -> ConvertResult:
    return ConvertResult(
        action=action,
        folder=prepared.request.output,
        manifest=manifest,
        plan=prepared.plan,
        seconds=time.monotonic() - started,
        warnings=(*notes, *_warnings(prepared, manifest)),
    )


def _warnings(prepared: Prepared, manifest: Manifest | None) -> tuple[str, ...]:
    engine = manifest.engine if manifest else None
    pending = (
        [f"The engine is not built yet: {engine.reason}"] if engine and engine.state == "pending" else []
    )
    return (*prepared.plan.remarks, *_tokenizer_warning(prepared, manifest), *pending)


def _tokenizer_warning(prepared: Prepared, manifest: Manifest | None) -> list[str]:
    if manifest is None or f"{TOKENIZER}/tokenizer.json" in manifest.files:
        return []
    return [
        f"{prepared.request.model} has no tokenizer.json; serving text needs one (save a fast tokenizer)."
    ]
