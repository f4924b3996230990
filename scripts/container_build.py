"""Builds the targets of Dockerfile.triton with buildah, which needs no daemon, and looks into the images.

Where no registry can be reached, debootstrap makes the base: a Debian for the target `cpu`, and for the
target `triton` an Ubuntu that says of itself what NVIDIA's image says. It has neither tritonserver nor
TensorRT-LLM: with it the steps of the Dockerfile are proven, not the engine.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from builder.compat import newest_container

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = "Dockerfile.triton"
CHUNK = 1 << 24

Target = Literal["cpu", "triton"]


@dataclass(frozen=True)
class Image:
    """An image in buildah's storage and its configuration, as Docker's own format has it."""

    name: str
    config: dict[str, Any]
    history: str

    @property
    def environment(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    @property
    def user(self) -> tuple[int, int]:
        uid, gid = self.config["User"].split(":")
        return int(uid), int(gid)


def obstacle() -> str:
    """Why images cannot be built on this machine, or ""."""
    missing = [name for name in ("buildah", "debootstrap", "git") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (Debian has packages of these names)" if missing else ""


def copy_context(target: Path) -> None:
    """The checkout as a clone has it: what git tracks, and new files that it does not ignore."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def make_base(target: Target) -> str:
    """A base image made here by debootstrap; one that is there already is used again. Returns its name."""
    name = f"localhost/ew-base:{target}"
    if _quiet("buildah", "inspect", "--type", "image", name) == 0:
        return name
    with tempfile.TemporaryDirectory(prefix="ew-base-") as folder:
        root = Path(folder) / "root"
        _run("debootstrap", "--variant=minbase", *_debootstrap_arguments(target, root))
        for leftover in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / leftover)
        container = _output("buildah", "from", "scratch")
        _run("buildah", "add", "--quiet", container, f"{root}/", "/")
        for setting in _stand_in(target, root, container):
            _run("buildah", "config", f"--env={setting}", container)
        _run("buildah", "commit", "--quiet", "--rm", "--format=docker", container, name)
    return name


def _debootstrap_arguments(target: Target, root: Path) -> tuple[str, ...]:
    if target == "cpu":
        return ("bookworm", str(root))
    # Debian's debootstrap may not know Ubuntu's releases or keys; "gutsy" is what all of them are read as.
    options = ("--no-check-gpg", "--components=main,universe", "--include=python3,libpython3.12t64")
    return (*options, "noble", str(root), "", "gutsy")


def _stand_in(target: Target, root: Path, container: str) -> Iterator[str]:
    """What NVIDIA's image has and a plain Ubuntu lacks: versions, and pip constraints that are not ours."""
    if target == "cpu":
        return
    newest = newest_container()
    name = f"tensorrt_llm-{newest.tensorrt_llm}.dist-info"
    metadata = root / "usr/local/lib/python3.12/dist-packages" / name / "METADATA"
    metadata.parent.mkdir(parents=True)
    fields = f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {newest.tensorrt_llm}\n"
    metadata.write_text(fields, encoding="utf-8")
    constraint = root / "etc/pip/constraint.txt"
    constraint.parent.mkdir()
    constraint.write_text("numpy==1.0\n", encoding="utf-8")
    _run("buildah", "add", "--quiet", container, str(root / "usr/local"), "/usr/local")
    _run("buildah", "add", "--quiet", container, str(root / "etc/pip"), "/etc/pip")
    yield f"NVIDIA_TRITON_SERVER_VERSION={newest.triton}"
    yield "PIP_CONSTRAINT=/etc/pip/constraint.txt"


def build(target: Target, base: str, context: Path, secrets: Sequence[str], name: str) -> Image:
    """Build `target` on `base`; `secrets` are `id=NAME,src=FILE`. The steps are the Dockerfile's own."""
    _run(
        *("buildah", "build", "--isolation=chroot", "--layers", "--force-rm", "--format=docker"),
        *(f"--file={context / DOCKERFILE}", f"--target={target}", f"--tag={name}"),
        f"--build-arg={'CPU_BASE' if target == 'cpu' else 'TRITON_BASE'}={base}",
        *(f"--secret={secret}" for secret in secrets),
        str(context),
    )
    facts = json.loads(_output("buildah", "inspect", "--type", "image", name))
    return Image(name, facts["Docker"]["config"], json.dumps(facts))


@contextmanager
def mounted(name: str) -> Iterator[Path]:
    """The image's root file system, in a container that goes away at the end."""
    container = _output("buildah", "from", name)
    try:
        yield Path(_output("buildah", "mount", container))
    finally:
        _run("buildah", "rm", container)


def changed_files(base: Path, root: Path) -> list[str]:
    """What of the base's programs and libraries another root file system lacks or has differently."""
    found = []
    for folder in ("usr", "opt"):
        for path in (base / folder).rglob("*"):
            now = root / path.relative_to(base)
            if not path.is_dir() and (
                not now.is_symlink() and not now.exists() or _facts(path) != _facts(now)
            ):
                found.append(str(path.relative_to(base)))
    return found


def _facts(path: Path) -> tuple[int, int, int]:
    status = path.lstat()
    return status.st_mode, status.st_size, int(status.st_mtime)


def layers_hold(image: Image, needles: Sequence[bytes]) -> list[bytes]:
    """Those of `needles` that stand in any layer, deleted files included, or in the configuration."""
    with tempfile.TemporaryDirectory(prefix="ew-layers-") as folder:
        archive = Path(folder) / "image.tar"
        _run("buildah", "push", "--quiet", image.name, f"docker-archive:{archive}")
        found = search(archive, needles)
    return sorted(found | {needle for needle in needles if needle in image.history.encode()})


def search(path: Path, needles: Sequence[bytes]) -> set[bytes]:
    """Those of `needles` that a file holds; it may be larger than memory."""
    overlap = max(map(len, needles))
    found: set[bytes] = set()
    tail = b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            window = tail + chunk
            found |= {needle for needle in needles if needle in window}
            tail = window[-overlap:]
    return found


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=2)  # stdout is for the report


def _quiet(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
