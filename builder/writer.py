"""Fills rank files from a plan, several steps at once, so that an interrupted run can go on.

The files grow in `.partial/` beside a journal of finished steps. A killed process loses at most the steps
in flight; after a reboot the journal is not trusted, because data may not have reached the disk.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from builder.digests import FileDigests, gaps
from builder.journal import Journal
from builder.normhead import normalise_rows
from builder.shard import RankFile, ShardPlan, Step, cut
from common.casts import STORED, Array, cast_into
from common.errors import ResourceError
from common.tensors import write_error

PARTIAL = ".partial"
PIECE_BYTES = 1 << 19  # of the source; what is cast or gathered stays in the cache until it is written
Progress = Callable[[int, int], None]


class _Scratch(threading.local):
    """Buffers of one thread, kept between steps."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, use: str, dtype: str, shape: tuple[int, int]) -> Array:
        kind, items = STORED[dtype], shape[0] * shape[1]
        buffer = self._buffers.get(use)
        if buffer is None or buffer.nbytes < items * kind.itemsize:
            buffer = self._buffers[use] = np.empty(items * kind.itemsize, np.uint8)
        return buffer[: items * kind.itemsize].view(kind).reshape(shape)


class Filler:
    """Carries out steps; safe to call from several threads."""

    def __init__(self, plan: ShardPlan, descriptors: list[int]) -> None:
        self._plan, self._descriptors, self._scratch = plan, descriptors, _Scratch()
        self.overflows: deque[tuple[str, int]] = deque()  # source tensor, numbers that became infinite

    def run(self, step: Step) -> None:
        """Read the rows of a step, change them as it says and write them to every rank that has them."""
        source = self._plan.source
        file, info = source.file_of(step.source), source.info(step.source)
        begin, end = step.rows
        row_bytes = info.nbytes // info.shape[0]
        values = file.view(step.source).reshape(info.shape[0], -1)
        height = max(1, PIECE_BYTES // row_bytes)
        for first in range(begin, end, height):
            last = min(first + height, end)
            self._piece(step, first, self._changed(step, values[first:last], info.dtype))
        file.drop(info.offset + begin * row_bytes, info.offset + end * row_bytes)

    def _changed(self, step: Step, values: Array, source_dtype: str) -> Array:
        if source_dtype != step.dtype:
            result = self._scratch.array("cast", step.dtype, (values.shape[0], values.shape[1]))
            if overflows := cast_into(values, source_dtype, result, step.dtype):
                self.overflows.append((step.source, overflows))
            values = result
        return normalise_rows(values, step.dtype) if step.normalised else values

    def _piece(self, step: Step, begin: int, values: Array) -> None:
        """Write source rows from `begin` on to every rank that has them."""
        for move in step.moves:
            for part in cut(move, begin, begin + len(values)):
                (first, last), (left, right) = part.rows, part.columns
                rectangle = values[first - begin : last - begin, left:right]
                self._write(part.rank, rectangle, step.dtype, part.offset)

    def _write(self, rank: int, part: Array, dtype: str, offset: int) -> None:
        if not part.flags.c_contiguous:
            gathered = self._scratch.array("gather", dtype, (part.shape[0], part.shape[1]))
            gathered[...] = part
            part = gathered
        write_at(self._descriptors[rank], part.reshape(-1).view(np.uint8).data, offset)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """pwrite all of `data`."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _batches(
    pool: ThreadPoolExecutor, run: Callable[[Step], None], waiting: Iterator[tuple[int, Step]], ahead: int
) -> Iterator[list[tuple[int, Step]]]:
    """Run steps with at most `ahead` of them under way; yields what has finished, raises what failed."""
    under_way: dict[Future[None], tuple[int, Step]] = {}
    try:
        while True:
            for number, step in waiting:
                under_way[pool.submit(run, step)] = (number, step)
                if len(under_way) >= ahead:
                    break
            if not under_way:
                return
            finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            yield [under_way.pop(future) for future in finished]
    finally:
        for future in under_way:
            future.cancel()


@contextmanager
def _open_files(folder: Path, files: list[RankFile], *, keep: bool) -> Iterator[list[int]]:
    """The growing rank files, at their full size and with their headers."""
    descriptors: list[int] = []
    try:
        for file in files:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if keep else os.O_TRUNC)
            descriptors.append(os.open(folder / file.name, flags, 0o644))
            os.ftruncate(descriptors[-1], file.size)
            write_at(descriptors[-1], memoryview(file.header), 0)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _can_go_on(folder: Path, files: list[RankFile]) -> bool:
    return all((folder / file.name).is_file() for file in files)


@dataclass(frozen=True)
class Wishes:
    """How to write: threads, whether to go on with what is there, whether to take digests on the way."""

    workers: int
    resume: bool
    digests: bool
    progress: Progress


@dataclass(frozen=True)
class Filled:
    """SHA-256 of each rank file by name, if wished, and the bytes that an earlier run had written.

    `overflows` counts, by source tensor, the numbers too large for the new type, in what this run cast.
    """

    sha256: dict[str, str]
    reused_bytes: int
    overflows: dict[str, int]


def fill(plan: ShardPlan, output: Path, wishes: Wishes) -> Filled:
    """Write all rank files into `output`.

    Raises:
        ResourceError: disk full, no permission, or another conversion in the same folder.
    """
    folder = output / PARTIAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        resume = wishes.resume and _can_go_on(folder, plan.files)
        journal = Journal(folder / "journal", plan.digest, resume=resume)
        try:
            _check_space(plan, folder)
            filled = _fill(plan, folder, journal, wishes)
            _publish(plan, folder, output)
        finally:
            journal.close()
    except OSError as error:
        raise write_error(Path(error.filename or output), error) from error
    return filled


def _check_space(plan: ShardPlan, folder: Path) -> None:
    """Raise before the first byte when the disk cannot hold what is still missing."""
    present = [folder / file.name for file in plan.files if (folder / file.name).is_file()]
    needed = plan.total_bytes - sum(path.stat().st_blocks * 512 for path in present)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"The checkpoint needs {needed / 1e9:.2f} GB more; {folder.parent} has {free / 1e9:.2f} GB free.",
            hint="Free space, or choose an output folder on another disk.",
            code="disk_full",
        )


def _publish(plan: ShardPlan, folder: Path, output: Path) -> None:
    """Move the finished rank files to their place; those of an earlier, larger layout go."""
    for file in plan.files:
        (folder / file.name).replace(output / file.name)
    names = {file.name for file in plan.files}
    for path in output.glob("rank*.safetensors"):
        if path.name not in names:
            path.unlink()
    shutil.rmtree(folder)


def _fill(plan: ShardPlan, folder: Path, journal: Journal, wishes: Wishes) -> Filled:
    waiting = [(number, step) for number, step in enumerate(plan.steps) if number not in journal.done]
    done = reused = plan.total_bytes - sum(step.nbytes for _, step in waiting)
    wishes.progress(done, plan.total_bytes)
    with (
        _open_files(folder, plan.files, keep=not journal.is_new) as descriptors,
        FileDigests(descriptors if wishes.digests else [], plan.files) as digests,
        ThreadPoolExecutor(wishes.workers, thread_name_prefix="convert") as pool,
    ):
        _complete_the_rest(digests, plan, [step for _, step in waiting])
        filler = Filler(plan, descriptors)
        for batch in _batches(pool, filler.run, iter(waiting), 2 * wishes.workers):
            journal.add([number for number, _ in batch])
            _complete(digests, [step for _, step in batch])
            done += sum(step.nbytes for _, step in batch)
            wishes.progress(done, plan.total_bytes)
        sha256 = digests.finish()
    overflows: Counter[str] = Counter()
    for name, count in filler.overflows:
        overflows[name] += count
    return Filled(sha256, 0 if journal.is_new else reused, dict(overflows))


def _places(steps: list[Step]) -> dict[int, list[tuple[int, int]]]:
    """Rank -> byte ranges of its file that the steps write."""
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for step in steps:
        for move in step.moves:
            places[move.rank].append(move.place)
    return places


def _complete(digests: FileDigests, steps: list[Step]) -> None:
    for rank, ranges in _places(steps).items():
        digests.complete(rank, ranges)


def _complete_the_rest(digests: FileDigests, plan: ShardPlan, waiting: list[Step]) -> None:
    """Headers, padding and what an earlier run has written: all but the waiting steps' places."""
    places = _places(waiting)
    for rank, file in enumerate(plan.files):
        digests.complete(rank, gaps(places.get(rank, []), file.size))
