"""The list of rules, and what they report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from runtime.k8s.manifests import Manifests

Complaints = Iterator[tuple[str, str]]  # (object, what is wrong)
Check = Callable[[Manifests], Iterable[tuple[str, str]]]


@dataclass(frozen=True)
class Rule:
    """A mistake that rules out a manifest; `title` says what has to hold."""

    id: str
    title: str
    check: Check


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one object."""

    rule: str
    object: str
    message: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


RULES: dict[str, Rule] = {}


def rule(rule_id: str, title: str) -> Callable[[Check], Check]:
    """Add a check to the list."""

    def add(check: Check) -> Check:
        RULES[rule_id] = Rule(rule_id, title, check)
        return check

    return add


def apply(manifests: Manifests) -> list[Finding]:
    """What every rule finds, in the order of the rules."""
    return [finding for each in RULES.values() for finding in _judged(each, manifests)]


def _judged(each: Rule, manifests: Manifests) -> list[Finding]:
    found = []
    try:
        for name, message in each.check(manifests):
            found.append(Finding(each.id, name, message))  # what comes before a wrong field stays
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Anybody's manifests may have a text where a rule expects a number, or a list for a map.
        message = f"The rule cannot be applied, because a field is not of its kind: {error!r}."
        found.append(Finding(each.id, "the manifests", message))
    return found
