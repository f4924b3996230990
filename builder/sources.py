"""Where weights come from: a Hugging Face folder of safetensors, or of PyTorch pickles when allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from common.casts import Array
from common.errors import CheckpointError
from common.tensors import TensorFolder, TensorInfo


class TensorSource(Protocol):
    """One file of tensors; `common.tensors.TensorFile` is one."""

    path: Path
    size: int

    @property
    def tensors(self) -> dict[str, TensorInfo]: ...

    def view(self, name: str) -> Array: ...

    def drop(self, begin: int, end: int) -> None: ...


class Source:
    """All weights of a model in one name space.

    Args:
        folder: holds .safetensors files, or .bin files and `allow_pickle`.

    Raises:
        CheckpointError: no weights, or broken ones.
    """

    def __init__(self, folder: Path, *, allow_pickle: bool = False) -> None:
        self.folder = folder
        self._file_of: dict[str, TensorSource] = {}
        weights = TensorFolder(folder)
        if not len(weights):
            raise CheckpointError(
                f"{folder} holds no safetensors weights.",
                hint="Give the folder of a Hugging Face checkpoint.",
                code="no_weights",
            )
        for name in weights:
            self._file_of[name] = weights.file_of(name)
        self.files = sorted(set(self._file_of.values()), key=lambda file: file.path)
        self._order = {file.path: number for number, file in enumerate(self.files)}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def file_of(self, name: str) -> TensorSource:
        return self._file_of[name]

    def info(self, name: str) -> TensorInfo:
        return self._file_of[name].tensors[name]

    def view(self, name: str) -> Array:
        return self._file_of[name].view(name)

    def place(self, name: str) -> tuple[int, int]:
        """File number and offset: the order in which the disk holds the tensors."""
        file = self._file_of[name]
        return self._order[file.path], file.tensors[name].offset

    def fingerprint(self) -> list[list[Any]]:
        """Name, size and modification time of every file."""
        return [[file.path.name, file.size, file.path.stat().st_mtime_ns] for file in self.files]
