"""Sources and requests for the conversion tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from builder.convert import convert
from builder.manifest import Manifest
from builder.package import Package, load_package
from builder.request import ConvertRequest, ConvertResult
from tests.builder.golden import GOLDEN

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


def make_source(folder: Path, name: str = "llama-sharded") -> Path:
    """A golden model with something like a tokenizer, and a file of code that must not be copied."""
    shutil.copytree(GOLDEN / name / "hf", folder)
    for file in TOKENIZER_FILES:
        (folder / file).write_text(json.dumps({"file": file}), encoding="utf-8")
    (folder / "modeling_llama.py").write_text("raise SystemExit('this must never run')\n", encoding="utf-8")
    return folder


def request(source: Path, output: Path, **options: Any) -> ConvertRequest:
    """A checkpoint-stage request with its own cache beside the output."""
    defaults: dict[str, Any] = {"stage": "checkpoint", "dtype": "bfloat16", "cache": output.parent / "cache"}
    return ConvertRequest(str(source), output, **(defaults | options))


def run(source: Path, output: Path, **options: Any) -> ConvertResult:
    return convert(request(source, output, **options))


def package(result: ConvertResult) -> Package:
    return load_package(result.folder)


def manifest(result: ConvertResult) -> Manifest:
    assert result.manifest is not None
    return result.manifest
