"""Facts about TensorRT-LLM and its containers, as JSON; each file names its source."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


@functools.cache
def load(name: str) -> dict[str, Any]:
    """`name`.json of this folder; callers must not change it."""
    document: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return document
