"""LoRA adapters by task id: a folder with a subfolder for each id, in which is a Hugging Face adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"


def find_adapters(folder: Path) -> dict[int, Path]:
    """The adapters in `folder`, by id.

    Raises:
        ConfigError: the folder holds none, or one that is not an adapter.
    """
    found = {int(path.name): path for path in sorted(folder.glob("*")) if path.name.isdigit()}
    wrong = [path for path in found.values() if not (path / ADAPTER_CONFIG).is_file()]
    if wrong or not found:
        raise ConfigError(
            f"{wrong[0] if wrong else folder} holds no LoRA adapter.",
            why=f"Expected is FOLDER/TASK_ID/{ADAPTER_CONFIG}, with numbers as task ids.",
            hint="Correct lora_prefetch_dir in deploy/config.json.",
            code="lora_missing",
        )
    return found


def lora_arguments(adapters: Mapping[int, Path]) -> dict[str, Any]:
    """Arguments of tensorrt_llm.LLM that make room for all of them."""
    ranks = [_rank(path) for path in adapters.values()]
    config = {
        "lora_dir": [str(path) for path in adapters.values()],
        "max_lora_rank": max(ranks),
        "max_loras": len(ranks),
        "max_cpu_loras": len(ranks),
    }
    return {"enable_lora": True, "lora_config": config}


def _rank(folder: Path) -> int:
    path = folder / ADAPTER_CONFIG
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} says no rank.",
            why=repr(error),
            hint="Take the adapter as PEFT saved it.",
            code="lora_rank",
        ) from error
