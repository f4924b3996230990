"""Where weights come from: a Hugging Face folder of safetensors, or of PyTorch pickles when allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from builder.pickles import TO_SAFETENSORS, PickleFile
from common.casts import Array
from common.errors import CheckpointError
from common.tensors import MappedTensors, TensorFolder, TensorInfo

PICKLES = ("pytorch_model*.bin", "model*.bin", "consolidated*.pth", "pytorch_model*.pt", "model*.pt")


class Source:
    """All weights of a model in one name space.

    Args:
        folder: holds .safetensors files, or PyTorch pickles and `allow_pickle`.

    Raises:
        CheckpointError: no weights, or broken ones.
    """

    def __init__(self, folder: Path, *, allow_pickle: bool = False) -> None:
        self.folder = folder
        weights = TensorFolder(folder)
        self._file_of: dict[str, MappedTensors] = {name: weights.file_of(name) for name in weights}
        if not self._file_of:
            self._file_of = _pickled(folder, allow_pickle)
        self.files = sorted(set(self._file_of.values()), key=lambda file: file.path)
        self._order = {file.path: number for number, file in enumerate(self.files)}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def file_of(self, name: str) -> MappedTensors:
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


def _pickled(folder: Path, allowed: bool) -> dict[str, MappedTensors]:
    paths = sorted({path for pattern in PICKLES for path in folder.glob(pattern)})
    if not paths:
        raise CheckpointError(
            f"{folder} holds no weights.",
            why="There is neither a .safetensors nor a pytorch_model*.bin file.",
            hint="Give the folder of a Hugging Face checkpoint.",
            code="weights_missing",
        )
    if not allowed:
        raise CheckpointError(
            f"{folder} holds its weights as pickle, a format that can run code when it is loaded.",
            why=f"There is {paths[0].name} and no .safetensors file.",
            hint=f"Allow a reader that admits tensors only: --allow-pickle. {TO_SAFETENSORS}",
            code="pickle_refused",
        )
    found: dict[str, MappedTensors] = {}
    for path in paths:
        file = PickleFile(path)
        for name in file:
            if name in found:
                raise CheckpointError(
                    f"{name!r} is in {found[name].path.name} and in {path.name}.",
                    hint="Leave only the files of one checkpoint in the folder.",
                    code="tensor_twice",
                )
            found[name] = file
    return found
