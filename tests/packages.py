"""Packages with a valid manifest and a tokenizer, and no weights: enough to render a repository from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from builder.manifest import MANIFEST_NAME, Manifest, sha256_of, write_manifest

DIGEST = "0" * 64


def make_package(
    folder: Path,
    tokenizer: Tokenizer | None = None,
    *,
    settings: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    era: str = "engine",
    engine: str = "none",
    tensorrt_llm: str = "1.2.1",
) -> Path:
    """A package in `folder`; `settings` is its tokenizer_config.json, `engine` the engine's state."""
    files = {
        "checkpoint/config.json": {"architecture": "LlamaForCausalLM"},
        "tokenizer/tokenizer_config.json": settings or {},
        "tokenizer/generation_config.json": generation or {},
    }
    for name, document in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(document))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    write_manifest(folder, _manifest(folder, era, engine, tensorrt_llm))
    return folder


def _manifest(folder: Path, era: str, engine: str, tensorrt_llm: str) -> Manifest:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_NAME]
    return Manifest.model_validate(
        {
            "tool": {"version": "0"},
            "created": "2026-01-01T00:00:00Z",
            "keys": {"checkpoint": DIGEST},
            "source": {"model": "m", "kind": "path", "path": "/m", "digest": DIGEST, "files": []},
            "model": {"architecture": "LlamaForCausalLM", "family": "llama", "reasons": {}},
            "layout": {"dtype": "float16", "tp_size": 1, "pp_size": 1},
            "sizes": {"max_batch_size": 4, "max_input_len": 64, "max_output_len": 64},
            "runtime": {"era": era, "tensorrt_llm": tensorrt_llm, "reason": "test"},
            "plan": {},
            "engine": {"state": engine, "reason": "test", "command": ["bash", "-c", "trtllm-build --x"]},
            "files": {
                path.relative_to(folder).as_posix(): {
                    "sha256": sha256_of(path),
                    "bytes": path.stat().st_size,
                }
                for path in paths
            },
        }
    )
