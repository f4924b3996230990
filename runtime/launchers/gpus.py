"""Which GPUs a server gets."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import ResourceError, UsageError
from runtime.nvidia import Gpu

GIB = 2**30


def parse_gpus(text: str) -> tuple[int, ...]:
    """ "0,2" -> (0, 2).

    Raises:
        UsageError: not a list of distinct indices.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts) or len(set(parts)) < len(parts):
        raise UsageError(
            f"{text!r} is not a list of GPUs.", hint="Give indices as nvidia-smi shows them, such as 0,1."
        )
    return tuple(int(part) for part in parts)


def choose_gpus(present: Sequence[Gpu], count: int, wanted: Sequence[int] = ()) -> tuple[int, ...]:
    """Indices of the GPUs to use: the wanted ones, else the `count` with most free memory.

    Raises:
        UsageError: a wanted GPU is not there, or their number does not fit the models.
        ResourceError: fewer GPUs than the models need.
    """
    by_index = {gpu.index: gpu for gpu in present}
    if wanted:
        _check_wanted(by_index, count, wanted)
        return tuple(wanted)
    if len(present) < count:
        raise ResourceError(
            f"The models need {_gpus(count)}; this machine shows {_gpus(len(present))}.",
            why="A model needs tensor_parallel_size times pipeline_parallel_size GPUs.",
            hint="Convert with a smaller --tp-size or --pp-size, or start on a larger machine.",
            code="too_few_gpus",
        )
    roomiest = sorted(present, key=lambda gpu: (-gpu.free, gpu.index))[:count]
    return tuple(sorted(gpu.index for gpu in roomiest))


def memory_problem(present: Sequence[Gpu], chosen: Sequence[int], weight_bytes: int) -> str:
    """Why the weights of one rank don't fit the chosen GPUs' free memory, or ""."""
    for gpu in present:
        if gpu.index in chosen and gpu.free < weight_bytes:
            need, free = weight_bytes / GIB, gpu.free / GIB
            has = f"GPU {gpu.index} ({gpu.name}) has {free:.1f} GiB free"
            return f"{has}; one rank's weights take {need:.1f} GiB."
    return ""


def _check_wanted(by_index: dict[int, Gpu], count: int, wanted: Sequence[int]) -> None:
    unknown = [str(index) for index in wanted if index not in by_index]
    if unknown:
        known = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in by_index.values()) or "none"
        raise UsageError(
            f"There is no GPU {', '.join(unknown)}.", hint=f"This machine has {known}.", code="no_such_gpu"
        )
    if len(wanted) < count:
        raise UsageError(
            f"The models need {_gpus(count)}, but --gpus names {len(wanted)}.",
            hint=f"Name {count} of them, or none to have them chosen.",
            code="too_few_gpus",
        )


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
