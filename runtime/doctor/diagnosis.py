"""The one finding that explains a failed start best."""

from __future__ import annotations

from collections.abc import Iterable

from runtime import logs
from runtime.doctor import logbook
from runtime.doctor.finding import Finding


def diagnose(names: Iterable[str]) -> Finding | None:
    """The first known cause in these logs, in their order; None when the book holds none of their lines."""
    paths = [path for path in map(logs.log_path, names) if path.is_file()]
    causes = (
        finding
        for finding in logbook.explain_files(paths)
        if finding.severity == "error" and finding.id not in logbook.consequences()
    )
    return next(causes, None)
