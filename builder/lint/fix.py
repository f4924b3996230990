"""`ew lint --fix`: repairs that cannot change what a configuration means to say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from builder.lint.rules import Finding
from builder.pbtxt import quote
from common import atomic

TRUE = {"yes", "on", "y", "t", "true", "enable", "enabled"}
FALSE = {"no", "off", "n", "f", "false", "disable", "disabled"}
KEEP = ".keep"


def apply_fixes(repository: Path, findings: Iterable[Finding]) -> list[Finding]:
    """Repair what is safe; returns what was repaired. Lint again afterwards."""
    return [finding for finding in findings if finding.rule.id in _FIXES and _apply(repository, finding)]


def _apply(repository: Path, finding: Finding) -> bool:
    path = repository / finding.file
    if finding.rule.id == "EW105":
        (path.parent / "1").mkdir(exist_ok=True)
        (path.parent / "1" / KEEP).touch()
        return True
    old = path.read_text(encoding="utf-8")
    new = _FIXES[finding.rule.id](old, finding)
    if new == old:
        return False
    atomic.write_text(path, new)
    return True


def _fix_name(text: str, finding: Finding) -> str:
    folder = finding.file.split("/", 1)[0]
    return re.sub(r'^(\s*name:\s*)"[^"]*"', lambda match: match[1] + quote(folder), text, count=1, flags=re.M)


def _add_empty_parameter(text: str, finding: Finding) -> str:
    if finding.subject == "gpt_model_type":
        return text
    return f'{text.rstrip()}\nparameters {{ key: "{finding.subject}" value: {{ string_value: "" }} }}\n'


def _fix_boolean(text: str, finding: Finding) -> str:
    def replaced(match: re.Match[str]) -> str:
        value = match[2].strip().lower()
        fixed = "true" if value in TRUE else "false" if value in FALSE else match[2]
        return f'{match[1]}"{fixed}"'

    return _value_of(finding.subject).sub(replaced, text, count=1)


def _empty_value(text: str, finding: Finding) -> str:
    return _value_of(finding.subject).sub(r'\1""', text, count=1)


def _value_of(key: str) -> re.Pattern[str]:
    """From a parameter's key to its value, over any layout: group 1 up to the value, group 2 the value."""
    return re.compile(
        rf'(key:\s*"{re.escape(key)}"\s*,?\s*value:?\s*\{{\s*string_value:\s*)"([^"]*)"', re.DOTALL
    )


_FIXES: dict[str, Callable[[str, Finding], str]] = {
    "EW104": _fix_name,
    "EW105": lambda text, finding: text,
    "EW109": _empty_value,
    "EW301": _add_empty_parameter,
    "EW303": _fix_boolean,
}
