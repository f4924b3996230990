"""What setting up an environment takes, as a list of commands. Pure: nothing is run or written."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from common.config import Engine
from runtime.environments.registry import Manager
from runtime.environments.releases import DISTRIBUTIONS, Release, load

CONDA: tuple[Manager, ...] = ("conda", "mamba", "micromamba")
TOOLS = ("pip", "setuptools", "wheel")
DEFAULT_NAMES: dict[Engine, str] = {
    "cpu": "ew-cpu",
    "cuda-trt": "ew-trt",
    "cuda-vllm": "ew-vllm",
    "cuda-hf": "ew-hf",
}
# What an engine's package does not ask for by itself. transformers sizes its cache with psutil.
BESIDE = {"cuda-hf": ["psutil"]}


@dataclass(frozen=True)
class SetupRequest:
    """What `ew setup` was asked for; `python` is a version ("3.12") or an interpreter's path."""

    engine: Engine
    name: str
    manager: Manager
    python: str
    folder: Path
    release: Release | None = None
    image: str = ""
    lock: Path | None = None
    find_links: Path | None = None
    uv: str | None = None

    @property
    def installs_with_uv(self) -> bool:
        """uv does it where packages have one source; several indexes are left to pip, as documented."""
        one_source = self.engine == "cpu" or self.find_links is not None
        return self.uv is not None and self.manager == "venv" and one_source


@dataclass(frozen=True)
class Step:
    """One command; `name` identifies it for resuming."""

    name: str
    purpose: str
    command: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "purpose": self.purpose, "command": list(self.command)}


@dataclass(frozen=True)
class SetupPlan:
    """The commands in order, and the distributions whose versions are checked and remembered at the end."""

    request: SetupRequest
    steps: tuple[Step, ...]
    pins: dict[str, str]

    @property
    def digest(self) -> str:
        """Changes with any command or pin: an environment made from another plan is made anew."""
        content = [[step.command for step in self.steps], self.pins]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def plan_setup(request: SetupRequest) -> SetupPlan:
    """The steps for an engine and a manager."""
    if request.manager == "system":
        return SetupPlan(request, (), _pins(request))
    if request.manager == "container":
        pull = Step("pull", "download the container image", ("docker", "pull", request.image))
        return SetupPlan(request, (pull,), {})
    install = _cpu_steps(request) if request.engine == "cpu" else _cuda_steps(request)
    return SetupPlan(request, (*_create(request), *install), _pins(request))


def runner(request: SetupRequest) -> tuple[str, ...]:
    """What comes before arguments of the environment's Python."""
    if request.manager in CONDA:
        options = ("--no-capture-output",) if request.manager == "conda" else ()
        return (request.manager, "run", *options, "--name", request.name, "python")
    return (str(request.folder / "bin" / "python"),)


def torch_version(specifier: str) -> str:
    """The release that the pin means: ">=2.9.1,<=2.10.0a0" -> 2.9.1, ">=2.9.0a0,<=2.9.0" -> 2.9.0."""
    bounds = {clause.operator: Version(clause.version) for clause in SpecifierSet(specifier)}
    if "==" in bounds:
        return str(bounds["=="])
    upper, lower = bounds.get("<="), bounds[">="]
    return str(upper) if upper and not upper.is_prerelease else lower.base_version


def torch_index(release: Release) -> str:
    """PyTorch's own index for the CUDA version that the engine is built with."""
    pattern: str = load()["indexes"]["torch"]
    return pattern.format(cuda=release.cuda.replace(".", ""))


def _create(request: SetupRequest) -> tuple[Step, ...]:
    if request.manager in CONDA:
        packages = [f"python={request.python}", "pip"]
        if request.engine == "cuda-trt":
            packages.append("openmpi")  # tensorrt_llm loads libmpi
        arguments = ("create", "--yes", "--name", request.name, "--channel", "conda-forge", *packages)
        return (Step("create", "make the conda environment", (request.manager, *arguments)),)
    if request.uv:
        seed = () if request.installs_with_uv else ("--seed",)
        command = (request.uv, "venv", "--quiet", *seed, "--python", request.python, str(request.folder))
    else:
        command = (request.python, "-m", "venv", str(request.folder))
    return (Step("create", "make the environment", command),)


def _cpu_steps(request: SetupRequest) -> tuple[Step, ...]:
    options = ("--no-deps", "--require-hashes", *_source(request), "-r", str(request.lock))
    return (Step("packages", "install the locked packages", (*_installer(request), *options)),)


def _cuda_steps(request: SetupRequest) -> tuple[Step, ...]:
    release = _release(request)
    pip = _installer(request)
    torch = f"torch=={torch_version(release.torch)}"
    source = _source(request)
    engine_from = source or _engine_index(request.engine)
    # A folder of wheels holds what the engine needs; pip's own update is not among it.
    update = () if source else (Step("pip", "bring pip up to date", (*pip, "--upgrade", *TOOLS)),)
    engine = Step("engine", f"install {request.engine}", (*pip, *engine_from, *_requirements(request, torch)))
    if request.engine != "cuda-trt":
        return (*update, engine)
    torch_from = source or ("--index-url", torch_index(release))
    install_torch = Step("torch", f"install PyTorch for CUDA {release.cuda}", (*pip, *torch_from, torch))
    return (*update, install_torch, engine)


def _requirements(request: SetupRequest, torch: str) -> list[str]:
    release = _release(request)
    named = f"{DISTRIBUTIONS[request.engine]}=={release.version}"
    pinned = [f"transformers{release.transformers}", f"numpy{release.numpy}"]
    if request.engine == "cuda-hf":  # named already
        del pinned[0]
    return [named, torch, *pinned, *BESIDE.get(request.engine, [])]


def _engine_index(engine: Engine) -> tuple[str, ...]:
    return ("--extra-index-url", load()["indexes"]["tensorrt_llm"]) if engine == "cuda-trt" else ()


def _source(request: SetupRequest) -> tuple[str, ...]:
    """Offline: only the wheels of a folder."""
    return ("--no-index", "--find-links", str(request.find_links)) if request.find_links else ()


def _installer(request: SetupRequest) -> tuple[str, ...]:
    if request.uv and request.installs_with_uv:
        return (request.uv, "pip", "install", "--python", str(request.folder / "bin" / "python"))
    return (*runner(request), "-m", "pip", "install", "--disable-pip-version-check")


def _pins(request: SetupRequest) -> dict[str, str]:
    if request.engine == "cpu":
        return {"numpy": "<2", "openvino-genai": "", "tokenizers": ""}
    release = _release(request)
    if request.manager == "system":  # NVIDIA's containers carry builds of their own
        return {DISTRIBUTIONS[request.engine]: f"=={release.version}"}
    return {
        "torch": release.torch,
        "transformers": release.transformers,
        "numpy": release.numpy,
        DISTRIBUTIONS[request.engine]: f"=={release.version}",
    }


def _release(request: SetupRequest) -> Release:
    assert request.release is not None, "cuda engines always have a release"
    return request.release


def unmet(pins: dict[str, str], versions: dict[str, str | None]) -> list[str]:
    """Pins that the installed versions don't satisfy, in words. Local labels (2.9.1+cu130) don't count."""
    problems = []
    for name, specifier in pins.items():
        version = versions.get(name)
        if version is None:
            problems.append(f"{name} is not installed")
        elif not SpecifierSet(specifier).contains(Version(version).public, prereleases=True):
            problems.append(f"{name} is {version}, not {specifier}")
    return problems


def shown(steps: Sequence[Step]) -> list[str]:
    """The commands as a shell takes them."""
    return [shlex.join(step.command) for step in steps]
