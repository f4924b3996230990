"""`ew lint`: what is wrong with a Triton model repository, before tritonserver says it, or does not say it.

`rules` is the table of what is looked for, `checks_*` find it, `report` shows it, `fix` repairs what is safe.
"""

from __future__ import annotations

from pathlib import Path

from builder.lint.checks_config import check_config
from builder.lint.checks_engine import check_engine
from builder.lint.checks_ensemble import check_ensembles
from builder.lint.checks_imports import check_imports
from builder.lint.checks_python import check_python_model
from builder.lint.checks_upstream import check_upstream
from builder.lint.checks_worker import check_worker
from builder.lint.repository import Options, Repository, load_repository
from builder.lint.rules import Finding

__all__ = ["Options", "lint"]

MODEL_CHECKS = (check_config, check_engine, check_python_model, check_imports, check_upstream, check_worker)


def lint(repository: Path, options: Options | None = None) -> list[Finding]:
    """All findings in a repository, by file and line.

    Raises:
        RepositoryError: there is no such folder, or no model in it.
    """
    loaded: Repository = load_repository(repository, options or Options())
    findings = list(loaded.findings)
    for model in loaded.models.values():
        for check in MODEL_CHECKS:
            findings.extend(check(model, loaded))
    findings.extend(check_ensembles(loaded))
    return sorted(findings, key=lambda finding: (finding.file, finding.line, finding.rule.id))
