"""GPUs: what is known by name, what is in this machine, and which number types each generation has."""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess
from dataclasses import dataclass

from common.errors import UsageError

GIB = 2**30
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
}


@dataclass(frozen=True)
class Gpu:
    """A GPU type; `memory` in bytes, `capability` is the compute capability as (major, minor)."""

    name: str
    memory: int
    capability: tuple[int, int] | None = None

    @property
    def sm(self) -> int | None:
        return self.capability[0] * 10 + self.capability[1] if self.capability else None

    @property
    def compute_capability(self) -> str | None:
        return f"{self.capability[0]}.{self.capability[1]}" if self.capability else None

    @property
    def generation(self) -> str:
        return next((name for low, name in _GENERATIONS if self.sm is not None and self.sm >= low), "unknown")


# lowest compute capability, times ten, of number types that not every supported GPU has
LOWEST_SM = {"bfloat16": 80, "fp8": 89, "w4a8_awq": 89, "nvfp4": 100}
REFUSED_ON_BLACKWELL = ("int8_sq", "int4_awq", "w4a8_awq")
_GENERATIONS = (
    (100, "Blackwell"),
    (90, "Hopper"),
    (89, "Ada"),
    (80, "Ampere"),
    (75, "Turing"),
    (70, "Volta"),
)

# name: (memory in GiB as sold, compute capability)
_KNOWN: dict[str, tuple[int, tuple[int, int]]] = {
    "V100-16GB": (16, (7, 0)), "V100-32GB": (32, (7, 0)), "T4": (16, (7, 5)), "RTX 2080 Ti": (11, (7, 5)),
    "A100-40GB": (40, (8, 0)), "A100-80GB": (80, (8, 0)), "A800": (80, (8, 0)), "A30": (24, (8, 0)),
    "A2": (16, (8, 6)), "A10": (24, (8, 6)), "A10G": (24, (8, 6)), "A16": (16, (8, 6)), "A40": (48, (8, 6)),
    "RTX A4000": (16, (8, 6)), "RTX A5000": (24, (8, 6)), "RTX A6000": (48, (8, 6)),
    "RTX 3060": (12, (8, 6)), "RTX 3070": (8, (8, 6)), "RTX 3080": (10, (8, 6)), "RTX 3090": (24, (8, 6)),
    "L4": (24, (8, 9)), "L20": (48, (8, 9)), "L40": (48, (8, 9)), "L40S": (48, (8, 9)),
    "RTX 4060": (8, (8, 9)), "RTX 4070": (12, (8, 9)), "RTX 4080": (16, (8, 9)), "RTX 4090": (24, (8, 9)),
    "RTX 6000 Ada": (48, (8, 9)), "H100": (80, (9, 0)), "H100 NVL": (94, (9, 0)), "H800": (80, (9, 0)),
    "H20": (96, (9, 0)), "H200": (141, (9, 0)), "GH200": (96, (9, 0)), "B100": (180, (10, 0)),
    "B200": (180, (10, 0)), "GB200": (186, (10, 0)), "B300": (270, (10, 3)), "RTX 5070": (12, (12, 0)),
    "RTX 5080": (16, (12, 0)), "RTX 5090": (32, (12, 0)), "RTX PRO 6000": (96, (12, 0)),
}  # fmt: skip
_ALIASES = {"V100": "V100-16GB", "A100": "A100-80GB"}


def known_gpu_types() -> list[Gpu]:
    return [Gpu(name, memory * GIB, capability) for name, (memory, capability) in _KNOWN.items()]


def gpu_by_name(name: str, *, or_memory: bool = False) -> Gpu:
    """A GPU type by its usual name, upper or lower case, with or without NVIDIA in front.

    Args:
        or_memory: whether who asks takes --gpu-memory instead; the refusal says so.

    Raises:
        UsageError: unknown; names the nearest.
    """
    names = {_plain(known): known for known in (*_KNOWN, *_ALIASES)}
    known = names.get(_plain(name))
    if known is None:
        near = difflib.get_close_matches(_plain(name), names, n=1, cutoff=0.5)
        hint = f"Did you mean {names[near[0]]!r}? " if near else ""
        hint += "Or give its memory: --gpu-memory 24GiB. " if or_memory else ""
        raise UsageError(
            f"The GPU {name!r} is not known.",
            hint=f"{hint}Known: {', '.join(_KNOWN)}.",
            code="unknown_gpu",
        )
    memory, capability = _KNOWN[_ALIASES.get(known, known)]
    return Gpu(_ALIASES.get(known, known), memory * GIB, capability)


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())


def parse_bytes(text: str) -> int:
    """The memory of a GPU: `24GiB`, `24G`, `80000MiB`, `24GB` (decimal) or plain bytes.

    Raises:
        UsageError: not a size, or too few bytes for a GPU: a unit was forgotten.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is not a size.", hint="Write it like 24GiB or 80GB.", code="bad_size")
    size = int(float(match[1]) * UNITS[match[2].upper()])
    if size < UNITS["M"]:
        raise UsageError(
            f"No GPU has {text.strip()} bytes." if not match[2] else f"No GPU has {text.strip()}.",
            hint=f"Give the unit, for example {match[1]}GiB.",
            code="bad_size",
        )
    return size


def detect_gpus() -> list[Gpu]:
    """The GPUs that nvidia-smi shows; empty when there is none or no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu for line in answer.stdout.splitlines() if (gpu := _parse_smi_line(line))]


def _parse_smi_line(line: str) -> Gpu | None:
    fields = [part.strip() for part in line.split(",")]
    if len(fields) != 3 or not fields[1].isdigit():
        return None
    capability = re.fullmatch(r"(\d+)\.(\d+)", fields[2])
    return Gpu(
        fields[0], int(fields[1]) * 2**20, (int(capability[1]), int(capability[2])) if capability else None
    )


def number_type_problem(kind: str, gpu: Gpu) -> str | None:
    """Why a dtype or --quantization `kind` does not run on this GPU, or None."""
    sm = gpu.sm
    if sm is None:
        return None
    if sm < 75:
        return f"{gpu.name} ({gpu.generation}) lost its TensorRT-LLM support in 0.16."
    lowest = LOWEST_SM.get(kind, 0)
    if sm < lowest:
        needed = f"{lowest // 10}.{lowest % 10}"
        return f"{gpu.name} has compute capability {gpu.compute_capability}; {kind} needs {needed}."
    if kind in REFUSED_ON_BLACKWELL and 100 <= sm < 120:
        return f"{gpu.name} is a Blackwell GPU, on which TensorRT-LLM does not run {kind}."
    return None
