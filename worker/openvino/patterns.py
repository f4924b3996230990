"""Regular expressions of JSON schemas in EBNF, for texts between quotation marks that need no escapes.

A dot and an excluding class leave out what JSON escapes: quotation mark, backslash and control characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

ESCAPED = '"\\'
# As in a class. (One of all other characters compiles to bytes that lead nowhere.)
OUTSIDE = r'"\\\x00-\x1f'
SAFE_CHARACTER = f"[^{OUTSIDE}]"
NAMED = {"d": "0-9", "w": "a-zA-Z0-9_"}
PART = re.compile(
    r"\[(?P<inside>(?:\\.|[^\]\\])*)\]|\\(?P<escaped>.)|(?P<count>\{\d+(?:,\d*)?\})|(?P<group>\(\?:)|.",
    re.DOTALL,
)
SPAN = re.compile(r"(?P<low>\\?.)-(?P<high>\\?.)|(?P<single>\\.|.)", re.DOTALL)


def literal(text: str) -> str:
    """`text`, without control characters, as an EBNF string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def pattern_rule(pattern: str) -> str | None:
    """What a whole text must be that `pattern` matches; None for what is not carried out exactly."""
    inside = pattern.removeprefix("^")
    if inside.endswith("$") and not inside.endswith("\\$"):
        inside = inside[:-1]
    parts = [_part(found) for found in PART.finditer(inside)]
    return None if None in parts else " ".join(part for part in parts if part) or '""'


def _part(found: re.Match[str]) -> str | None:
    if found["inside"] is not None:
        return _class(found["inside"])
    if found["escaped"] is not None:
        return _escape(found["escaped"])
    if found["count"] or found["group"]:
        return found["count"] or "("
    return _character(found)


def _character(found: re.Match[str]) -> str | None:
    character = found[0]
    if character == ".":
        return SAFE_CHARACTER
    if character in "()|*+?":
        # "(?" opens what EBNF does not have, and a second mark after a count makes it lazy.
        before = found.string[: found.start()][-1:]
        return None if character in "?+*" and before in "(*+?}" else character
    return None if character in "^$[" or not _is_plain(character) else literal(character)


def _escape(letter: str) -> str | None:
    if letter in NAMED:
        return f"[{NAMED[letter]}]"
    return literal(letter) if not letter.isalnum() and _is_plain(letter) else None


def _class(inside: str) -> str | None:
    excludes = inside.startswith("^")
    spans = list(_spans(inside[1:] if excludes else inside))
    if not spans or None in spans:
        return None
    members = "".join(span for span in spans if span)
    # The compiler cuts an excluding class off where ASCII ends.
    if excludes:
        return f"[^{OUTSIDE}{members}]" if members.isascii() else None
    return f"[{members}]"


def _spans(inside: str) -> Iterator[str | None]:
    """The members of a class as EBNF has them; None for one that JSON would have to escape."""
    for found in SPAN.finditer(inside):
        if found["single"] is None:
            yield _span(found["low"][-1], found["high"][-1])
        elif found["single"][0] == "\\" and found["single"][1] in NAMED:
            yield NAMED[found["single"][1]]
        else:
            yield _span(found["single"][-1], found["single"][-1], named=len(found["single"]) == 2)


def _span(low: str, high: str, named: bool = False) -> str | None:
    if named and low.isalnum():
        return None
    if low < " " or high < " " or any(low <= character <= high for character in ESCAPED):
        return None
    ends = [f"\\{end}" if end in "]-^[" else end for end in (low, high)]
    return ends[0] if low == high else "-".join(ends)


def _is_plain(character: str) -> bool:
    return character >= " " and character not in ESCAPED
