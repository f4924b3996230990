"""Graphs built once and kept: a second start of the same package loads them in about a second."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from worker.openvino.graph import read_config, write_ir
from worker.openvino.guide_check import write_idle_model
from worker.openvino.guides import CHECK_FOLDER
from worker.openvino.vocabulary import token_bytes, write_vocabulary

MODEL_FILE = "openvino_model.xml"
TOKENIZER_FILE = Path("tokenizer") / "tokenizer.json"
CODE_FOLDER = Path(__file__).resolve().parent


def graph_folder(checkpoint: Path, precision: str, window: int | None, cache: Path) -> Path:
    """The folder with the OpenVINO model of `checkpoint` at `precision`; builds it when it is not there.

    `window` is the sliding attention window in tokens, None for full attention. The vocabulary of the
    package's tokenizer is put beside the model, where guided decoding finds it.

    Raises:
        CheckpointError: not a TRT-LLM checkpoint, or incomplete.
        UnsupportedModelError: the cpu engine cannot compute this model.
    """
    place = cache / "openvino" / hashlib.sha256(str(checkpoint.resolve()).encode()).hexdigest()[:16]
    kind = precision if window is None else f"{precision}-window{window}"
    folder = place / f"{kind}-{_digest(checkpoint)}"
    if not (folder / MODEL_FILE).is_file():
        _build(checkpoint, precision, window, folder)
        _forget_older(folder, kind)
    return folder


def _build(checkpoint: Path, precision: str, window: int | None, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
    try:
        write_ir(checkpoint, fresh, precision, window)
        _write_guide_files(checkpoint, fresh)
        fresh.rename(folder)
    except OSError:
        # Another worker may have finished the same graph first.
        if not (folder / MODEL_FILE).is_file():
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_guide_files(checkpoint: Path, folder: Path) -> None:
    """What guided decoding needs; nothing for a tokenizer that it cannot be done with."""
    vocab_size = read_config(checkpoint).vocab_size
    tokens = token_bytes(checkpoint.parent / TOKENIZER_FILE, vocab_size)
    if tokens is not None:
        write_idle_model(folder / CHECK_FOLDER, vocab_size)
        write_vocabulary(tokens, folder / CHECK_FOLDER)
        write_vocabulary(tokens, folder)


def _forget_older(folder: Path, kind: str) -> None:
    """Graphs of the same checkpoint folder before it changed; running workers keep what they have mapped."""
    for other in folder.parent.glob(f"{kind}-{24 * '[0-9a-f]'}"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _digest(checkpoint: Path) -> str:
    """Changes when the checkpoint, the code that builds the graph or OpenVINO changes."""
    digest = hashlib.sha256(version("openvino").encode())
    for source in sorted(CODE_FOLDER.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update((checkpoint / "config.json").read_bytes())
    for file in (*sorted(checkpoint.glob("rank*.safetensors")), checkpoint.parent / TOKENIZER_FILE):
        if file.is_file():
            state = file.stat()
            digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def default_cache() -> Path:
    """`EW_CACHE_DIR`, else `.cache` of the installation (`EW_HOME`, or the folder that holds worker/)."""
    home = os.environ.get("EW_HOME") or CODE_FOLDER.parent.parent
    return Path(os.environ.get("EW_CACHE_DIR") or Path(home) / ".cache")
