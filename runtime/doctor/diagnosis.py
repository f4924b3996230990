"""The one finding that explains a failed start best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.doctor import logbook
from runtime.doctor.finding import Finding


def diagnose(logs: Mapping[str, Sequence[str]]) -> Finding | None:
    """The first known cause in the lines of these logs, in their order; None when the book holds none."""
    causes = (
        finding
        for finding in logbook.explain_together(logs)
        if finding.severity == "error" and finding.id not in logbook.consequences()
    )
    return next(causes, None)
