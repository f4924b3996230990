"""Chinese texts of generated pages, looked up by the English text, so that none outlives a change of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Texts:
    """English -> Chinese, from one JSON file beside this one."""

    path: Path
    chinese: dict[str, str]

    def __call__(self, text: str) -> str:
        """The Chinese of a text.

        Raises:
            LookupError: the file has none.
        """
        if text not in self.chinese:
            raise LookupError(f"{self.path.name} has no Chinese for: {text}")
        return self.chinese[text]


def read_texts(name: str) -> Texts:
    path = Path(__file__).with_name(name)
    return Texts(path, json.loads(path.read_text(encoding="utf-8")))
