"""The one finding that explains a failed start best."""

from __future__ import annotations

from collections.abc import Iterable

from runtime import logs
from runtime.doctor import logbook
from runtime.doctor.finding import Finding


def diagnose(names: Iterable[str]) -> Finding | None:
    """The first known cause in these logs, in their order; None when the book holds none of their lines."""
    for name in names:
        path = logs.log_path(name)
        findings = logbook.explain_file(path) if path.is_file() else []
        for finding in findings:
            if finding.severity == "error" and finding.id not in consequences():
                return finding
    return None


def consequences() -> frozenset[str]:
    """Findings that only say that something else went wrong."""
    follow_on = (signature.id for signature in logbook.signatures() if signature.follow_on)
    return frozenset(follow_on) | {"log_unknown_error"}
