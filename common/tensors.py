"""Safetensors files without PyTorch: checked headers, zero-copy views, sequential writing.

BF16 has no numpy type, so its stored form is uint16; `common.casts` converts between stored forms.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from common.casts import STORED, Array, cast
from common.errors import CheckpointError, ResourceError

__all__ = [
    "STORED",
    "Array",
    "TensorFile",
    "TensorFolder",
    "TensorInfo",
    "TensorSpec",
    "TensorWriter",
    "cast",
]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
HEADER_LIMIT = 100 * 2**20
WRITE_PIECE = 8 * 2**20


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, before it has a place: safetensors dtype name ('BF16', 'F16', ...) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def items(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.items * STORED[self.dtype].itemsize


@dataclass(frozen=True)
class TensorInfo(TensorSpec):
    """A tensor in a file; `offset` is in bytes from the start of the file."""

    offset: int


def _broken(path: Path, why: str) -> NoReturn:
    raise CheckpointError(
        f"{path} is not a complete safetensors file.",
        why=why,
        hint="Download or copy the file again; its size and digest are listed where you got it.",
        code="safetensors_broken",
    )


def read_error(path: Path, error: OSError) -> CheckpointError | ResourceError:
    """The expected error for a file that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} does not exist.", hint="Check the path.", code="file_missing")
    if isinstance(error, PermissionError):
        hint = f"Give your user read access: chmod u+r {path}"
        return ResourceError(
            f"{path} cannot be read.", why="Permission denied.", hint=hint, code="permission"
        )
    return ResourceError(f"{path} cannot be read.", why=str(error), code="read_failed")


def _header_length(path: Path, start: bytes, size: int) -> int:
    if size < 8:
        _broken(path, f"It has {size} bytes; the smallest header has more.")
    length = int(struct.unpack("<Q", start)[0])
    if length > HEADER_LIMIT:
        _broken(path, f"Its header claims {length} bytes; the format allows {HEADER_LIMIT}.")
    if 8 + length > size:
        _broken(path, f"Its header claims {length} bytes, but the file ends after {size}.")
    return length


def _entry_spec(path: Path, name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        _broken(path, f"The header entry of {name!r} lacks dtype, shape or data_offsets.")
    numbers = (*shape, begin, end)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        _broken(path, f"The header entry of {name!r} holds something else than whole numbers.")
    if dtype not in STORED:
        _broken(path, f"{name!r} has the unknown dtype {dtype!r}.")
    return TensorSpec(dtype, shape), begin, end


def _check_layout(path: Path, places: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Tensors must follow each other without overlap or hole and fill the file exactly."""
    at = 0
    for begin, end, name in sorted(places):
        if begin != at or end < begin:
            problem = "overlaps another tensor" if begin < at else "leaves a hole before it"
            _broken(path, f"{name!r} at bytes {begin} to {end} {problem}.")
        at = end
    if at > data_bytes:
        _broken(path, f"Its tensors need {at} bytes, but only {data_bytes} are there: the file is truncated.")
    if at < data_bytes:
        _broken(path, f"{data_bytes - at} bytes after the last tensor belong to nothing.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _parse_header(path: Path, raw: bytes, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _broken(path, f"Its header is not JSON: {error}.")
    if not isinstance(header, dict):
        _broken(path, "Its header is not a JSON object.")
    metadata = header.pop("__metadata__", None) or {}
    data_start = 8 + len(raw)
    tensors, places = {}, []
    for name, entry in header.items():
        spec, begin, end = _entry_spec(path, name, entry)
        if end - begin != spec.nbytes:
            shape = list(spec.shape)
            _broken(path, f"{name!r} {spec.dtype} {shape} needs {spec.nbytes} bytes, has {end - begin}.")
        tensors[name] = TensorInfo(spec.dtype, spec.shape, data_start + begin)
        places.append((begin, end, name))
    _check_layout(path, places, size - data_start)
    return tensors, metadata


class MappedTensors:
    """A mapped file of which parts are tensors; the base of the readers of file formats."""

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], mapping: mmap.mmap) -> None:
        self.path, self.tensors, self._map = path, tensors, mapping
        self.size = len(mapping)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def view(self, name: str) -> Array:
        """The tensor in its stored form (BF16 as uint16), read-only, without a copy."""
        info = self.tensors[name]
        flat = np.frombuffer(self._map, dtype=STORED[info.dtype], count=info.items, offset=info.offset)
        return flat.reshape(info.shape)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor as float32, a copy unless it is stored so."""
        return cast(self.view(name), self.tensors[name].dtype, "F32")

    def drop(self, begin: int, end: int) -> None:
        """Unmap the whole pages inside file bytes [begin, end); reading them again maps them again."""
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = self.size if end >= self.size else end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)


class TensorFile(MappedTensors):
    """One .safetensors file, mapped and checked on opening.

    Raises:
        CheckpointError: missing, truncated or inconsistent; names the file and the reason.
        ResourceError: not readable.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = _header_length(path, file.read(8), size)
                tensors, self.metadata = _parse_header(path, file.read(length), size)
                super().__init__(path, tensors, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise read_error(path, error) from error


class TensorFolder:
    """The safetensors files of a Hugging Face checkpoint folder, one name space.

    With `model.safetensors.index.json` the index rules and is checked against the files; without it
    `model.safetensors`, or else every .safetensors file in the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, TensorFile] = {}
        self._file_of: dict[str, TensorFile] = {}
        index = folder / INDEX_NAME
        if index.is_file():
            self._open_indexed(index)
        else:
            self._open_all()

    def _open_indexed(self, index: Path) -> None:
        weight_map = _read_index(index)
        for file_name in sorted(set(weight_map.values())):
            if not (self.folder / file_name).is_file():
                listed = sum(1 for name in weight_map.values() if name == file_name)
                raise CheckpointError(
                    f"{self.folder / file_name} is missing.",
                    why=f"{INDEX_NAME} places {listed} tensors in it.",
                    hint="Download the missing shard into the same folder.",
                    code="shard_missing",
                )
            self.files[file_name] = TensorFile(self.folder / file_name)
        for name, file_name in weight_map.items():
            if name not in self.files[file_name]:
                raise CheckpointError(
                    f"{index} does not match its files.",
                    why=f"It places {name!r} in {file_name}, which does not hold it.",
                    hint="Download index and shards of one and the same revision.",
                    code="index_mismatch",
                )
            self._file_of[name] = self.files[file_name]

    def _open_all(self) -> None:
        single = self.folder / SINGLE_NAME
        paths = [single] if single.is_file() else sorted(self.folder.glob("*.safetensors"))
        for path in paths:
            file = self.files[path.name] = TensorFile(path)
            for name in file:
                if name in self._file_of:
                    raise CheckpointError(
                        f"{name!r} is in {self._file_of[name].path.name} and in {path.name}.",
                        why=f"There is no {INDEX_NAME} that says which one counts.",
                        hint="Add the index, or leave only the files of one checkpoint in the folder.",
                        code="tensor_twice",
                    )
                self._file_of[name] = file

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def file_of(self, name: str) -> TensorFile:
        return self._file_of[name]

    def info(self, name: str) -> TensorInfo:
        return self._file_of[name].tensors[name]

    def view(self, name: str) -> Array:
        """The tensor in its stored form, read-only, without a copy."""
        return self._file_of[name].view(name)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor as float32."""
        return self._file_of[name].floats(name)


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(name): str(file) for name, file in weight_map.items()}
    except OSError as error:
        raise read_error(index, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is not a safetensors index.",
            why=f"{type(error).__name__}: {error}.",
            hint="Download it again.",
            code="index_broken",
        ) from error
    for file in pairs.values():
        if Path(file).name != file:
            raise CheckpointError(
                f"{index} names the file {file!r} outside its folder.",
                hint="Use an index whose shards lie beside it.",
                code="index_broken",
            )
    return pairs


def encode_header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """Length and JSON header of a file that holds `specs` in this order; data starts 8-byte aligned."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, spec in specs.items():
        offsets = [at, at + spec.nbytes]
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
        at = offsets[1]
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


class TensorWriter:
    """Writes one .safetensors file front to back under a temporary name; leaving the context renames it.

    Args:
        path: the final file.
        specs: every tensor of the file, in the order in which `write` will get them.
        metadata: the header's `__metadata__`, e.g. {"format": "pt"}.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._waiting = list(specs.items())[::-1]
        self._header = encode_header(specs, metadata)

    def __enter__(self) -> TensorWriter:
        try:
            self._file: BinaryIO = self._partial.open("wb")
            self._file.write(self._header)
        except OSError as error:
            raise write_error(self.path, error) from error
        return self

    def write(self, name: str, pieces: Array | Iterable[Array]) -> None:
        """Write the next tensor, whole or in pieces of its stored form."""
        expected, spec = self._waiting.pop()
        if name != expected:
            raise ValueError(f"{name!r} comes before {expected!r}")
        written = 0
        for piece in [pieces] if isinstance(pieces, np.ndarray) else pieces:
            written += self._write_piece(piece, spec)
        if written != spec.nbytes:
            raise ValueError(f"{name!r} needs {spec.nbytes} bytes, got {written}")

    def _write_piece(self, piece: Array, spec: TensorSpec) -> int:
        if piece.dtype != STORED[spec.dtype]:
            raise ValueError(f"{piece.dtype} is not the stored form of {spec.dtype}")
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
        try:
            for start in range(0, data.size, WRITE_PIECE):
                self._file.write(data[start : start + WRITE_PIECE].data)
        except OSError as error:
            raise write_error(self.path, error) from error
        return data.size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                self._finish()
        except OSError as problem:
            raise write_error(self.path, problem) from problem
        finally:
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._waiting:
            raise ValueError(f"{len(self._waiting)} tensors were not written, first {self._waiting[-1][0]!r}")
        self._partial.replace(self.path)


def write_error(path: Path, error: OSError) -> ResourceError:
    """The expected error for a file that cannot be written."""
    what, why = f"{path} cannot be written.", error.strerror or str(error)
    if isinstance(error, PermissionError):
        hint = f"Choose another output folder or give your user write access to {path.parent}"
        return ResourceError(what, why=why, hint=hint, code="permission")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f"Free space on the disk of {path.parent}, then run the command again; finished parts stay."
        return ResourceError(what, why=why, hint=hint, code="disk_full")
    return ResourceError(what, why=why, hint="Check the disk of the output folder.", code="write_failed")
