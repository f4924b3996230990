"""The rules: stable ids, what each means and what to do. docs/lint/ is generated from this table."""

from __future__ import annotations

from builder.lint import rules_config, rules_engine, rules_ensemble, rules_python, rules_upstream
from builder.lint.rule import DOCS, Finding, Rule

__all__ = ["DOCS", "RULES", "Finding", "Rule"]

_TABLES = (
    rules_config.TABLE,
    rules_engine.TABLE,
    rules_python.TABLE,
    rules_ensemble.TABLE,
    rules_upstream.TABLE,
)

RULES = {
    rule.id: rule for rule in sorted((rule for table in _TABLES for rule in table), key=lambda rule: rule.id)
}
