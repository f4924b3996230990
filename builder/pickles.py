"""Weights in PyTorch's zip format (pytorch_model*.bin), read without PyTorch and without running code.

The pickle inside may name tensors, their storages and plain containers; anything else is refused, as with
`torch.load(weights_only=True)`. The data itself lies uncompressed in the zip file and is mapped.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from common.casts import STORED
from common.errors import CheckpointError
from common.tensors import MappedTensors, TensorInfo, read_error

LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of name and extra field; the data follows them
STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
TO_SAFETENSORS = (
    'Convert them where PyTorch is installed: python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous().clone() for k, v in torch.load('FILE.bin', weights_only=True).items()}, "
    "'FILE.safetensors')\""
)


@dataclass(frozen=True)
class _Storage:
    """One entry data/KEY of the zip file."""

    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    """A tensor that the pickle describes; `first` is counted in items."""

    storage: _Storage
    first: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True


def _refuse(path: Path, why: str, code: str = "pickle_refused") -> NoReturn:
    raise CheckpointError(f"{path} cannot be read safely.", why=why, hint=TO_SAFETENSORS, code=code)


def _rebuild_tensor(
    storage: _Storage, first: int, shape: tuple[int, ...], stride: tuple[int, ...], *rest: Any
) -> _Tensor:
    return _Tensor(storage, int(first), tuple(shape), tuple(stride))


def _rebuild_parameter(tensor: _Tensor, *rest: Any) -> _Tensor:
    return tensor


ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}


class _WeightsOnly(pickle.Unpickler):
    """An unpickler to which only tensors exist."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in STORED:
            raise pickle.UnpicklingError(f"it refers to a {kind!r}")
        return _Storage(dtype, str(key))


def _entries(archive: zipfile.ZipFile, mapping: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Name below the archive's top folder -> offset in the file, size; of uncompressed entries."""
    places = {}
    for info in archive.infolist():
        if info.compress_type == zipfile.ZIP_STORED:
            name, extra = LOCAL_HEADER.unpack_from(mapping, info.header_offset)
            start = info.header_offset + LOCAL_HEADER.size + name + extra
            places[info.filename.partition("/")[2]] = (start, info.file_size)
    return places


def _described_tensors(path: Path, archive: zipfile.ZipFile) -> dict[str, _Tensor]:
    try:
        member = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(member) as file:
            state = _WeightsOnly(file).load()
        pairs = dict(state)
    except (StopIteration, zipfile.BadZipFile) as error:
        _refuse(path, f"It is no PyTorch archive: {error}.", "pickle_broken")
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        _refuse(path, f"Its pickle holds more than weights: {error}.")
    for name, value in pairs.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            _refuse(path, f"{name!r} is not a tensor.")
    return pairs


def _placed(
    path: Path, tensors: Mapping[str, _Tensor], entries: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, TensorInfo]]:
    for name, tensor in tensors.items():
        start, size = entries.get(f"data/{tensor.storage.key}", (0, -1))
        first = tensor.first * STORED[tensor.storage.dtype].itemsize
        info = TensorInfo(tensor.storage.dtype, tensor.shape, start + first)
        if not tensor.is_contiguous:
            _refuse(path, f"{name!r} is not contiguous.")
        if first < 0 or min(tensor.shape, default=0) < 0 or first + info.nbytes > size:
            _refuse(path, f"{name!r} reaches beyond its data.", "pickle_broken")
        yield name, info


class PickleFile(MappedTensors):
    """One pytorch_model*.bin.

    Raises:
        CheckpointError: not PyTorch's zip format, or anything in it that is not a tensor.
        ResourceError: not readable.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                tensors = _described_tensors(path, archive)
                super().__init__(path, dict(_placed(path, tensors, _entries(archive, mapping))), mapping)
        except zipfile.BadZipFile:
            _refuse(path, "It is not in the zip format that PyTorch writes since 1.6.", "pickle_broken")
        except OSError as error:
            raise read_error(path, error) from error
