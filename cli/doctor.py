"""`ew doctor`: what is wrong here, why, and what to type."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cli.output import emit, json_option, report_errors, say
from runtime.doctor.bundle import write_bundle
from runtime.doctor.examine import Report, examine, examine_log
from runtime.doctor.finding import Finding

COLOURS = {"error": "red", "warning": "yellow", "info": "cyan", "ok": "green"}


@click.command("doctor")
@click.option("--log", type=click.Path(path_type=Path), help="Explain this log file alone; - is stdin.")
@click.option(
    "--bundle", type=click.Path(path_type=Path), help="Write a tar.gz for a bug report, without secrets."
)
@click.option("--offline", is_flag=True, help="Leave out the checks of index and hub.")
@json_option
@report_errors
def command(log: Path | None, bundle: Path | None, offline: bool, as_json: bool) -> None:
    """Check machine, environments, packages and service, and explain what their logs say.

    Exits 1 when there are errors.

    \b
    Examples:
      ./ew doctor
      ./ew doctor --log triton.log
      docker logs my-triton 2>&1 | ./ew doctor --log -
      ./ew doctor --bundle report.tar.gz
    """
    report = examine_log(log) if log else examine(online=not offline)
    emit(report.as_dict(), as_json=as_json, text=as_text(report))
    if bundle:
        names = write_bundle(report, bundle)
        say(
            f"Wrote {bundle} ({len(names)} files, secrets removed). Look through it before you send it.",
            as_json=as_json,
        )
    sys.exit(1 if report.failed else 0)


def as_text(report: Report) -> str:
    """For people: a block for each finding, then the count."""
    if not report.findings:
        return click.style("Nothing found that is wrong.", fg="green")
    blocks = [block(finding) for finding in report.findings]
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    return "\n\n".join([*blocks, f"{errors} errors, {warnings} warnings"])


def block(finding: Finding) -> str:
    """One finding: severity and title, then the lines that say something."""
    mark = click.style(finding.severity, fg=COLOURS[finding.severity], bold=True)
    times = f" ({finding.count} times)" if finding.count > 1 else ""
    rows = {
        "where": finding.where,
        "seen": finding.evidence,
        "why": "" if finding.title.endswith(finding.cause.rstrip(".")) else finding.cause,
        "fix": finding.fix,
        "type": finding.command,
        "more": finding.link,
    }
    lines = [f"  {name + ':':<7}{value}" for name, value in rows.items() if value]
    return "\n".join([f"{mark} {finding.title}{times} [{finding.id}]", *lines])
