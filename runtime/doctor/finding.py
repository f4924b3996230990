"""A finding: what is wrong or worth knowing, why, how to mend it and what to type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info", "ok"]
ORDER: tuple[Severity, ...] = ("error", "warning", "info", "ok")


@dataclass(frozen=True)
class Finding:
    """`id` is stable; `evidence` is what was seen (a value, a log line), `where` the place."""

    id: str
    severity: Severity
    title: str
    cause: str = ""
    fix: str = ""
    command: str = ""
    evidence: str = ""
    where: str = ""
    link: str = ""
    count: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For --json: the fields that say something; `command` is what to type."""
        return {key: value for key, value in vars(self).items() if value or key == "id"}


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Worst first; equal ones as they came."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.severity))


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)
