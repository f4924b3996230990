"""Which package versions go together, from releases.json."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from common.errors import UsageError

DATA = Path(__file__).with_name("releases.json")
DISTRIBUTIONS = {"cuda-trt": "tensorrt_llm", "cuda-vllm": "vllm", "cuda-hf": "transformers"}


@dataclass(frozen=True)
class Release:
    """One release of an engine's package; pins as pip writes them; `cuda` is the one torch is built with."""

    version: str
    torch: str
    transformers: str
    numpy: str
    cuda: str
    tensorrt: str | None = None


@dataclass(frozen=True)
class VllmContainer:
    """One Triton release with vLLM inside."""

    triton: str
    tag: str
    python: str
    vllm: str
    cuda: str
    driver: str


@functools.cache
def load() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return document


def releases(engine: str) -> list[Release]:
    """Known releases of the engine's package, oldest first."""
    return [Release(**row) for row in load()[DISTRIBUTIONS[engine]]]


def release_for(engine: str, version: str | None) -> Release:
    """The release of that version; the newest stable one for None. An unknown version takes the pins of the
    newest known release before it.

    Raises:
        UsageError: not a version, or older than everything known.
    """
    known = releases(engine)
    if version is None:
        return [row for row in known if not Version(row.version).is_prerelease][-1]
    wanted = _parse(version)
    older = [row for row in known if Version(row.version) <= wanted]
    if not older:
        raise UsageError(
            f"{DISTRIBUTIONS[engine]} {version} is older than what ew can set up.",
            hint=f"Known are {', '.join(row.version for row in known)}; older ones are in NGC's containers.",
            code="version_too_old",
        )
    nearest = older[-1]
    return Release(**{**vars(nearest), "version": str(wanted)})


def is_known(engine: str, version: str) -> bool:
    return any(Version(row.version) == _parse(version) for row in releases(engine))


def vllm_containers() -> list[VllmContainer]:
    """Triton's vLLM containers, newest first."""
    return [VllmContainer(**row) for row in load()["vllm_containers"]]


def disk_bytes(engine: str) -> int:
    """Free disk that making the environment needs, downloads included."""
    return int(load()["disk_bytes"][engine])


def _parse(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        raise UsageError(
            f"{version!r} is not a version.", hint="Write it like 1.2.1 or 1.3.0rc22.", code="bad_version"
        ) from None
