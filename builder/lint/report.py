"""Findings as text, JSON and SARIF 2.1.0."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from builder.lint.rules import RULES, Finding

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def as_text(findings: list[Finding]) -> str:
    """file:line: severity: message [rule], one line each, and a count."""
    lines = [
        f"{finding.file}:{finding.line}: {finding.rule.severity}: {finding.message} [{finding.rule.id}]"
        for finding in findings
    ]
    return "\n".join([*lines, summary(findings)])


def summary(findings: list[Finding]) -> str:
    errors = sum(finding.rule.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    return f"{_count(errors, 'error')}, {_count(warnings, 'warning')}" if findings else "nothing found"


def as_document(repository: Path, findings: list[Finding], fixed: list[Finding]) -> dict[str, Any]:
    return {
        "repository": str(repository),
        "findings": [_entry(finding) for finding in findings],
        "fixed": [_entry(finding) for finding in fixed],
    }


def as_sarif(findings: list[Finding], version: str) -> dict[str, Any]:
    used = sorted({finding.rule.id for finding in findings})
    driver = {"name": "ew lint", "version": version, "rules": [_sarif_rule(rule_id) for rule_id in used]}
    results = [_sarif_result(finding) for finding in findings]
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(finding.rule.severity == "error" for finding in findings)


def _entry(finding: Finding) -> dict[str, Any]:
    rule = finding.rule
    return {
        "rule": rule.id,
        "severity": rule.severity,
        "file": finding.file,
        "line": finding.line,
        "message": finding.message,
        "cure": rule.cure,
        "page": rule.page,
        "fixable": rule.fixable,
    }


def _sarif_rule(rule_id: str) -> dict[str, Any]:
    rule = RULES[rule_id]
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.cure},
        "helpUri": rule.page,
        "defaultConfiguration": {"level": rule.severity},
    }


def _sarif_result(finding: Finding) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": finding.file}, "region": {"startLine": finding.line}}
    return {
        "ruleId": finding.rule.id,
        "level": finding.rule.severity,
        "message": {"text": finding.message},
        "locations": [{"physicalLocation": place}],
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
