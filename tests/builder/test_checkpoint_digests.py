from __future__ import annotations

import os
import random
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from builder.digests import FileDigest, FileDigests, gaps, sha256_of

CONTENT = random.Random(0).randbytes(5_000_000)


@dataclass(frozen=True)
class File:
    name: str
    size: int


FILE = File("file", len(CONTENT))


@pytest.fixture
def descriptor(tmp_path: Path) -> int:
    (tmp_path / "file").write_bytes(CONTENT)
    return os.open(tmp_path / "file", os.O_RDONLY)


def test_ranges_may_come_in_any_order(descriptor: int) -> None:
    cuts = [0, *sorted(random.Random(1).sample(range(1, len(CONTENT)), 40)), len(CONTENT)]
    ranges = list(zip(cuts, cuts[1:], strict=False))
    random.Random(2).shuffle(ranges)
    with FileDigests([descriptor], [FILE]) as digests:
        for each in ranges:
            digests.complete(0, [each])
        assert digests.finish() == {"file": sha256(CONTENT).hexdigest()}
    os.close(descriptor)


def test_a_hole_is_a_bug_that_shows(descriptor: int) -> None:
    digest = FileDigest(descriptor, len(CONTENT))
    digest.complete([(0, 10), (11, len(CONTENT))])
    with pytest.raises(ValueError, match="4999990 bytes were never reported"):
        digest.finish()
    os.close(descriptor)


def test_read_errors_come_out(descriptor: int) -> None:
    os.close(descriptor)
    digest = FileDigest(descriptor, len(CONTENT))
    digest.complete([(0, len(CONTENT))])
    with pytest.raises(OSError, match="Bad file descriptor"):
        digest.finish()


def test_a_file_that_shrinks_is_an_error(descriptor: int) -> None:
    digest = FileDigest(descriptor, len(CONTENT) + 1)
    digest.complete([(0, len(CONTENT) + 1)])
    with pytest.raises(OSError, match="ends at 5000000 of 5000001"):
        digest.finish()
    os.close(descriptor)


def test_stopping_needs_no_digest(descriptor: int) -> None:
    with FileDigests([descriptor], [FILE]) as digests:
        digests.complete(0, [(0, 100)])
    os.close(descriptor)


def test_finished_file_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    assert sha256_of(tmp_path / "x") == sha256(CONTENT).hexdigest()
    with FileDigests([], [FILE]) as digests:
        digests.complete(0, [(0, 1)])
        assert digests.finish() == {}


def test_gaps() -> None:
    assert gaps([], 5) == [(0, 5)]
    assert gaps([(3, 4), (1, 2)], 5) == [(0, 1), (2, 3), (4, 5)]
    assert gaps([(0, 5)], 5) == []
    assert gaps([(0, 3), (2, 5)], 5) == []
