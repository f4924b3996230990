"""What the mutation tests share: a copy of a good repository, one change, what lint says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from builder.lint import Options, lint


def mutate(path: Path, pattern: str, replacement: str) -> None:
    """Replace the first match; a mutation that changes nothing is a mistake."""
    old = path.read_text()
    new = re.sub(pattern, replacement, old, count=1)
    assert new != old, "the mutation changes nothing"
    path.write_text(new)


def found(repository: Path, **options: Any) -> set[tuple[str, str]]:
    """(rule, file) of every finding."""
    return {(finding.rule.id, finding.file) for finding in lint(repository, Options(**options))}
