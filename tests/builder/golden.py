"""The golden checkpoints: what upstream's converter wrote from tiny random models (tests/data/golden)."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.families import Layout
from common.tensors import TensorFile

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"
NAME = re.compile(r"tp(\d+)pp(\d+)(?:-(.+))?$")
# What a folder's tag says beyond the sizes: arguments of Layout, and the model type to name.
TAGS: dict[str, tuple[dict[str, Any], str | None]] = {
    "pemb0": ({"use_parallel_embedding": True}, None),
    "pemb1": ({"use_parallel_embedding": True, "embedding_sharding_dim": 1}, None),
    "float16": ({"dtype": "float16"}, None),
    "float32": ({"dtype": "float32"}, None),
    "ep2": ({"moe_tp_size": 1, "moe_ep_size": 2}, None),
    "asv1": ({}, "baichuan1"),
}


@dataclass(frozen=True)
class Case:
    """One conversion: input folder, layout and expected folder."""

    name: str
    source: Path
    expected: Path
    layout: Layout
    model_type: str | None

    def __str__(self) -> str:
        return self.name

    @property
    def hf_config(self) -> dict[str, Any]:
        return dict(json.loads((self.source / "config.json").read_text()))

    @property
    def config(self) -> dict[str, Any]:
        return dict(json.loads((self.expected / "config.json").read_text()))

    @property
    def tensors(self) -> dict[str, dict[str, list[Any]]]:
        """Rank file -> tensor -> [dtype, shape, sha256]."""
        return dict(json.loads((self.expected / "tensors.json").read_text()))


def _case(folder: Path) -> Case:
    match = NAME.match(folder.name)
    assert match
    arguments, model_type = TAGS[match[3]] if match[3] else ({}, None)
    layout = Layout(tp_size=int(match[1]), pp_size=int(match[2]), **arguments)
    return Case(f"{folder.parent.name}/{folder.name}", folder.parent / "hf", folder, layout, model_type)


CASES = [_case(folder) for folder in sorted(GOLDEN.glob("*/tp*"))]


def described(file: Path) -> dict[str, list[Any]]:
    """A rank file in the form of `Case.tensors`."""
    opened = TensorFile(file)
    return {
        name: [info.dtype, list(info.shape), hashlib.sha256(opened.view(name).tobytes()).hexdigest()]
        for name, info in opened.tensors.items()
    }
