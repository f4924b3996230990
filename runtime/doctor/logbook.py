"""Reads logs of tritonserver and the engines against the book of known lines, signatures.json.

A line is explained by the first signature that fits it. Lines that are only the consequence of another error
come last and count as explained when that error is known.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.errors import UsageError
from runtime.doctor.finding import Finding, Severity
from runtime.logs import HARMLESS, TROUBLE

DATA = Path(__file__).with_name("signatures.json")
HEAD_BYTES = 4 << 20  # start-up errors stand at the beginning of a log, crashes at its end
TAIL_BYTES = 16 << 20
SHOWN = 300
UNKNOWN = "log_unknown_error"
DIGITS = re.compile(r"\d+")
QUIET_LEVELS = ("debug", "info", "warning")
# Lines that their own writer calls a warning or less: an error that is there as well goes before them.
QUIET_LINE = re.compile(
    r"^[IW]\d{4} |\[(?:WARNING|INFO|DEBUG|TRACE)\]|\[[WID]\] |^(?:\(.*?\) )?(?:WARNING|INFO|DEBUG) "
)
# TensorRT-LLM says this of every optional setting that config.pbtxt leaves empty.
EMPTY_OPTION = re.compile(r"\[WARNING\] \[json\.exception\.type_error\.302\]")
NOISE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Signature:
    """A known log line: `patterns` are alternatives, searched in one line."""

    id: str
    component: str
    patterns: tuple[re.Pattern[str], ...]
    cause: str
    fix: str
    command: str = ""
    link: str = ""
    severity: Severity = "error"
    follow_on: bool = False

    def fits(self, line: str) -> bool:
        return any(pattern.search(line) for pattern in self.patterns)


@dataclass
class Match:
    """Where a signature was first seen, and how often."""

    signature: Signature
    line: str
    number: int
    count: int = 1

    @property
    def quiet(self) -> bool:
        """Whether it was only seen in lines that are no errors to their writer."""
        return QUIET_LINE.search(self.line) is not None


@dataclass
class Reading:
    """What one log holds: matches in order of appearance, and error lines that nothing explains."""

    source: str
    matches: dict[str, Match] = field(default_factory=dict)
    unexplained: list[tuple[int, str]] = field(default_factory=list)


@functools.cache
def signatures() -> tuple[Signature, ...]:
    """The book, in the order in which it is tried."""
    document = json.loads(DATA.read_text(encoding="utf-8"))
    return tuple(_signature(row) for row in document["signatures"])


def explain_file(path: Path) -> list[Finding]:
    """The findings of one log file ("-" is stdin), causes first.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else _head_and_tail(path)
    except OSError as error:
        raise UsageError(f"The log {path} cannot be read.", why=f"{error}.", code="log_unreadable") from None
    return explain(text.splitlines(), str(path))


def explain_together(logs: Mapping[str, Sequence[str]]) -> list[Finding]:
    """The findings of several logs of one run, from the lines of each by its name."""
    return merged(one for name, lines in logs.items() for one in explain(lines, name))


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """The findings of several logs of one run, causes first; each id once, where it was first seen."""
    together: dict[str, Finding] = {}
    for finding in findings:
        known = together.get(finding.id)
        together[finding.id] = replace(known, count=known.count + finding.count) if known else finding
    causes = [one for one in together.values() if one.id not in consequences()]
    if not causes:
        return list(together.values())
    followers = [one for one in together.values() if one.id in consequences() - {UNKNOWN}]
    return [*causes, *(replace(one, severity="info") for one in followers)]


@functools.cache
def consequences() -> frozenset[str]:
    """Ids that only say that something else went wrong."""
    return frozenset({UNKNOWN, *(signature.id for signature in signatures() if signature.follow_on)})


def explain(lines: Iterable[str], source: str = "log") -> list[Finding]:
    """The findings in a log's lines: causes, then consequences; an unknown error is shown as such."""
    reading = read(lines, source)
    causes = [match for match in reading.matches.values() if not match.signature.follow_on]
    causes.sort(key=lambda match: match.quiet)
    consequences = [match for match in reading.matches.values() if match.signature.follow_on]
    findings = [_finding(match, source) for match in causes]
    unknown = _unknown(reading) if not causes else []
    return [*findings, *unknown, *(_finding(match, source, bool(causes)) for match in consequences)]


def read(lines: Iterable[str], source: str) -> Reading:
    """Match every line; lines that differ only in numbers are looked up once."""
    reading = Reading(source)
    known: dict[str, Signature | None] = {}
    for number, raw in enumerate(lines, 1):
        line = message(NOISE.sub("", raw).strip())
        if not line or HARMLESS.search(line) or EMPTY_OPTION.search(line):
            continue
        shape = DIGITS.sub("0", line)
        if shape not in known:
            known[shape] = first_fit(line)
        _note(reading, known[shape], line, number)
    return reading


def message(line: str) -> str:
    """The text of a line: a JSON log line's own, or nothing when its level says that all is well."""
    if not line.startswith('{"'):
        return line
    try:
        fields = json.loads(line)
    except ValueError:
        return line
    if fields.get("level") in QUIET_LEVELS:
        return ""
    return " ".join(str(fields[name]) for name in ("message", "error", "exception") if fields.get(name))


def first_fit(line: str) -> Signature | None:
    """The signature that explains a line; a cause goes before the consequence that quotes it."""
    consequence = None
    for signature in signatures():
        if (consequence is None or not signature.follow_on) and signature.fits(line):
            if not signature.follow_on:
                return signature
            consequence = signature
    return consequence


def _note(reading: Reading, signature: Signature | None, line: str, number: int) -> None:
    if signature is None:
        if TROUBLE.search(line):
            reading.unexplained.append((number, line))
    elif signature.id in reading.matches:
        known = reading.matches[signature.id]
        known.count += 1
        if known.quiet and not QUIET_LINE.search(line):
            known.line, known.number = line, number
    else:
        reading.matches[signature.id] = Match(signature, line, number)


def _finding(match: Match, source: str, explained: bool = False) -> Finding:
    signature = match.signature
    return Finding(
        id=signature.id,
        severity="info" if signature.follow_on and explained else signature.severity,
        title=f"{signature.component}: {signature.cause.split('. ')[0].rstrip('.')}",
        cause=signature.cause,
        fix=signature.fix,
        command=signature.command,
        evidence=match.line[:SHOWN],
        where=f"{source}:{match.number}",
        link=signature.link,
        count=match.count,
    )


def _unknown(reading: Reading) -> list[Finding]:
    """The first error line that the book does not know; usually nearest to the cause."""
    if not reading.unexplained:
        return []
    number, line = reading.unexplained[0]
    return [
        Finding(
            id=UNKNOWN,
            severity="warning",
            title="An error that the book of known lines does not hold",
            cause="This is the first line that looks like an error.",
            fix="Read the lines around it; report it with ./ew doctor --bundle FILE.",
            evidence=line[:SHOWN],
            where=f"{reading.source}:{number}",
            count=len(reading.unexplained),
        )
    ]


def _signature(row: dict[str, Any]) -> Signature:
    return Signature(
        id=row["id"],
        component=row["component"],
        patterns=tuple(re.compile(pattern) for pattern in row["patterns"]),
        cause=row["cause"],
        fix=row["fix"],
        command=row.get("type", ""),
        link=row.get("link", ""),
        severity=row.get("severity", "error"),
        follow_on=row.get("follow_on", False),
    )


def _head_and_tail(path: Path) -> str:
    """The whole file, or of a large one its beginning and its end."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        rest = path.stat().st_size - len(head)
        if rest > TAIL_BYTES:
            file.seek(-TAIL_BYTES, 2)
        return (head + file.read(TAIL_BYTES)).decode("utf-8", "replace")


def by_component() -> Iterator[tuple[str, list[Signature]]]:
    """The book's chapters, for the documentation."""
    names = dict.fromkeys(signature.component for signature in signatures())
    for name in names:
        yield name, [signature for signature in signatures() if signature.component == name]
