"""The tokenizer folder of a package: every file a Hugging Face tokenizer may need, and never code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from common import atomic

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
SUFFIXES = (".model", ".tiktoken")


def tokenizer_files(source: Path) -> Iterator[Path]:
    """The tokenizer's files of a Hugging Face folder, in a stable order; `.py` files are never among them."""
    for path in sorted(source.iterdir()):
        if path.is_file() and (path.name in NAMES or path.suffix in SUFFIXES):
            yield path
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        yield from sorted(templates.glob("*.jinja"))


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files to `target`, each whole or not at all; returns their names there."""
    target.mkdir(parents=True, exist_ok=True)
    names = []
    for path in tokenizer_files(source):
        name = path.relative_to(source)
        copy_file(path, target / name)
        names.append(name.as_posix())
    atomic.sync_folder(target)
    return names


def copy_file(source: Path, target: Path) -> None:
    """Copy one file so that `target` appears whole; its content is on the disk before its name is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    with source.open("rb") as reader, partial.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 2**20)
        writer.flush()
        os.fsync(writer.fileno())
    partial.replace(target)
