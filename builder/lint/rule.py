"""What a rule and a finding are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
DOCS = "docs/lint"


@dataclass(frozen=True)
class Rule:
    """`title` is one line; `why` says what happens otherwise, `cure` what to do."""

    id: str
    severity: Severity
    title: str
    why: str
    cure: str
    fixable: bool = False

    @property
    def page(self) -> str:
        return f"{DOCS}/{self.id}.md"


@dataclass(frozen=True)
class Finding:
    """One breach of a rule. `file` is relative to the repository; `line` counts from 1."""

    rule: Rule
    file: str
    line: int
    message: str
    subject: str = ""  # the parameter or tensor that a fix is about
