"""`ew k8s check`: build, validate and judge manifests, ew's own or anybody's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from runtime.k8s import schemas
from runtime.k8s.build import is_buildable, kustomize
from runtime.k8s.manifests import Manifests, parse_manifests
from runtime.k8s.policy import RULES, Finding, apply

STDIN = "-"
NOT_INSTALLED = "not run: pip install kubernetes-validate"


@dataclass(frozen=True)
class Report:
    """What was found in one rendering; `versions` are the Kubernetes versions whose schemas were used."""

    source: str
    objects: int
    versions: tuple[str, ...]
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "objects": self.objects,
            "findings": [finding.as_dict() for finding in self.findings],
        }


@dataclass(frozen=True)
class CheckResult:
    reports: tuple[Report, ...]
    checks: dict[str, str]

    @property
    def failed(self) -> bool:
        return any(report.findings for report in self.reports)

    def as_dict(self) -> dict[str, Any]:
        return {
            "failed": self.failed,
            "checks": self.checks,
            "reports": [report.as_dict() for report in self.reports],
        }


def check(places: list[str], *, ignore: frozenset[str] = frozenset()) -> CheckResult:
    """Check kustomize folders, folders of such folders, YAML files, or `-` for standard input.

    Raises:
        UsageError: nothing to check there, or `ignore` names no rule.
        EnvironmentProblem: an overlay has to be built and there is no kubectl.
    """
    _refuse_unknown(ignore)
    module = schemas.validator()
    versions = schemas.newest_versions(module) if module else []
    sources = [source for place in places for source in _sources(place)]
    reports = tuple(_examine(source, module, versions, ignore) for source in sources)
    return CheckResult(reports, _checks(versions, ignore))


def examine(
    manifests: Manifests, module: Any, versions: list[str], ignore: frozenset[str] = frozenset()
) -> list[Finding]:
    """Everything that is wrong with these objects: schema first, then structure, then policy."""
    found = schemas.schema_findings(manifests, module, versions) if module else []
    found += schemas.structure_findings(manifests)
    found += apply(manifests)
    return [finding for finding in found if finding.rule not in ignore]


def _examine(source: str, module: Any, versions: list[str], ignore: frozenset[str]) -> Report:
    manifests = parse_manifests(_text(source), source)
    if not manifests.objects:
        raise UsageError(
            f"{'Standard input' if source == STDIN else source} holds no objects.",
            hint="Look at what wrote it; an empty rendering is not one that is right.",
            code="nothing_to_check",
        )
    findings = examine(manifests, module, versions, ignore)
    return Report(source, len(manifests.objects), tuple(versions), tuple(findings))


def _text(source: str) -> str:
    if source == STDIN:
        return sys.stdin.read()
    path = Path(source)
    return kustomize(path) if path.is_dir() else path.read_text(encoding="utf-8")


def _sources(place: str) -> list[str]:
    path = Path(place)
    if place == STDIN or path.is_file():
        return [place]
    if is_buildable(path):
        return [place]
    for folder in (path / "overlays", path):
        found = (
            sorted(str(child) for child in folder.iterdir() if is_buildable(child)) if folder.is_dir() else []
        )
        if found:
            return found
    raise UsageError(
        f"There is nothing to check in {place}.",
        hint="Give a folder with a kustomization.yaml, a folder of overlays, a YAML file, or - for stdin.",
        code="nothing_to_check",
    )


def _refuse_unknown(ignore: frozenset[str]) -> None:
    unknown = ignore - set(RULES) - {schemas.SCHEMA, schemas.STRUCTURE, schemas.UNKNOWN}
    if unknown:
        raise UsageError(
            f"There is no rule {min(unknown)!r}.", hint=f"Rules are {', '.join(RULES)}.", code="unknown_rule"
        )


def _checks(versions: list[str], ignore: frozenset[str]) -> dict[str, str]:
    """What was done, and what could not be."""
    return {
        "schemas": f"Kubernetes {', '.join(versions)}" if versions else NOT_INSTALLED,
        "custom resources": "structure only: known and needed fields; their pods by Kubernetes' schemas",
        "policy": f"{len(set(RULES) - ignore)} rules"
        + (f", without {', '.join(sorted(ignore))}" if ignore else ""),
    }
