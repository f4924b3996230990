"""Where the engines that load Hugging Face checkpoints find theirs."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import CheckpointError


def checkpoint_folder(package: Path, model: str | None, engine: str) -> Path:
    """The Hugging Face checkpoint to load: `model`, the package itself, or the one its llm_args.json names.

    Args:
        engine: how the engine is called in messages.

    Raises:
        CheckpointError: none of them is a folder with a config.json.
    """
    candidates = [Path(model)] if model else [package, *_source_of(package)]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        f"There is no Hugging Face checkpoint at {candidates[-1]}.",
        why=f"{engine} loads the original checkpoint, not the converted one.",
        hint="Set model_path in deploy/config.json to the checkpoint folder.",
        code="checkpoint_missing",
    )


def _source_of(package: Path) -> list[Path]:
    """The checkpoint that llm_args.json of the package names."""
    try:
        arguments = json.loads((package / "llm_args.json").read_text(encoding="utf-8"))
        return [package / arguments["model"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
