"""Which TensorRT-LLM a package is for: its era, its container, and what can load a built engine.

Engine era: versions with `trtllm-build` (up to 1.2.1, and release candidates up to 1.3.0rc15).
PyTorch era: later versions, which load the Hugging Face checkpoint themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from packaging.version import InvalidVersion, Version

from builder.data import load
from builder.manifest import RuntimeTarget
from common.errors import UnsupportedModelError, UsageError

Era = Literal["engine", "pytorch"]
RuntimeChoice = Literal["auto", "engine", "pytorch"]


@dataclass(frozen=True)
class Container:
    """One Triton release with TensorRT-LLM inside."""

    triton: str
    tag: str
    tensorrt_llm: str
    tensorrt: str
    python: str
    cuda: str
    driver: str


def containers() -> list[Container]:
    """Every known container, newest first."""
    return [Container(**row) for row in load("compatibility")["containers"]]


def container_for(tensorrt_llm: str) -> Container | None:
    """The newest container that carries exactly this TensorRT-LLM version."""
    return next((row for row in containers() if row.tensorrt_llm == tensorrt_llm), None)


def newest_container() -> Container:
    return containers()[0]


def parse_version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        raise UsageError(
            f"{text!r} is not a TensorRT-LLM version.",
            hint=f"Write it like {newest_container().tensorrt_llm} or 1.3.0rc15.",
            code="bad_version",
        ) from None


def era_of(version: str) -> Era:
    """The era of a TensorRT-LLM version; unknown release candidates in between count as PyTorch."""
    last = parse_version(load("compatibility")["engine_era"]["last_with"])
    return "engine" if parse_version(version) <= last else "pytorch"


def version_remark(version: str) -> list[str]:
    """What to say of a version that was released after ew's tables, or never."""
    wanted = parse_version(version)
    known = [row["version"] for row in load("compatibility")["releases"]]
    known += [container.tensorrt_llm for container in containers()]
    if any(parse_version(one) == wanted for one in known):
        return []
    return [
        f"TensorRT-LLM {version} is not in ew's tables, so nothing was checked against it; it is taken for "
        f"one of the {era_of(version)} era. The newest container has {newest_container().tensorrt_llm}."
    ]


def choose_runtime(choice: RuntimeChoice, version: str | None, found: str | None) -> RuntimeTarget:
    """Pick era and version from `--runtime`, `--trtllm-version` and the tensorrt_llm at hand (`found`).

    Raises:
        UsageError: the version is not one, or cannot do what `--runtime` asks.
    """
    chosen, reason = _choose_version(choice, version, found)
    era: Era = era_of(chosen) if choice == "auto" else choice
    if era == "engine" and era_of(chosen) != "engine":
        last = load("compatibility")["engine_era"]["last_stable"]
        raise UsageError(
            f"TensorRT-LLM {chosen} cannot build engines.",
            why="trtllm-build was removed after 1.2 (its last release candidate is 1.3.0rc15).",
            hint=f"Use --trtllm-version {last} with --runtime engine, or --runtime pytorch.",
            code="runtime_contradiction",
        )
    if era == "pytorch" and parse_version(chosen) < parse_version("1.0"):
        raise UsageError(
            f"TensorRT-LLM {chosen} does not serve with the PyTorch runtime.",
            why="It is the default only since 1.0.",
            hint="Use --trtllm-version 1.0.0 or later, or --runtime engine.",
            code="runtime_contradiction",
        )
    container = container_for(chosen)
    return RuntimeTarget(
        era=era, tensorrt_llm=chosen, container=container.tag if container else None, reason=reason
    )


def _choose_version(choice: RuntimeChoice, version: str | None, found: str | None) -> tuple[str, str]:
    if version is not None:
        return str(parse_version(version)), "--trtllm-version"
    usable = found is not None and (choice == "auto" or era_of(found) == choice or choice == "pytorch")
    if found is not None and usable:
        return found, f"tensorrt_llm {found} is at hand"
    newest = newest_container()
    return newest.tensorrt_llm, f"the newest Triton container ({newest.triton}) carries it"


def check_architecture(architecture: str, era: Era) -> None:
    """Refuse an architecture that the chosen era of TensorRT-LLM does not know.

    Raises:
        UnsupportedModelError: code `unsupported_in_era`; names the era that has it, if any.
    """
    known = load("model_map")
    if architecture in known[era]:
        return
    other: Era = "pytorch" if era == "engine" else "engine"
    hint = f"Use --runtime {other}." if architecture in known[other] else "Use --engine cuda-vllm or cuda-hf."
    name = "engine builder (up to 1.2.1)" if era == "engine" else "PyTorch runtime"
    raise UnsupportedModelError(
        f"TensorRT-LLM's {name} does not list {architecture}.", hint=hint, code="unsupported_in_era"
    )
