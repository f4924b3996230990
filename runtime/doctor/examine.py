"""The whole examination: every check in turn, or one log file alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import nvidia
from runtime.doctor import environments, logbook, machine, network, service
from runtime.doctor.finding import Finding, has_errors, in_order
from runtime.launchers.machine import find_docker, find_local

Check = Callable[[], Iterable[Finding]]


@dataclass(frozen=True)
class Report:
    """Findings, worst first, and the facts they rest on."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def failed(self) -> bool:
        return has_errors(self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {"findings": [finding.as_dict() for finding in self.findings], "facts": self.facts}


def examine_log(path: Path) -> Report:
    """The findings of one log, in the book's order: causes first.

    Raises:
        UsageError: the file cannot be read.
    """
    return Report(tuple(logbook.explain_file(path)), {"log": str(path)})


def examine(*, online: bool = True) -> Report:
    """Machine, environments, configuration, packages, service and its logs."""
    seen = nvidia.inspect()
    docker = find_docker(os.environ)
    local = find_local(os.environ)
    checks: list[Check] = [
        machine.check_platform,
        lambda: machine.check_gpus(seen),
        machine.check_space,
        lambda: machine.check_containers(docker, seen),
        environments.check_environments,
        service.check_project,
        service.check_repository,
        service.check_service,
        service.check_logs,
    ]
    if online:
        checks.append(network.check_network)
    findings = in_order(finding for check in checks for finding in check())
    facts = {
        "machine": machine.facts(seen),
        "tritonserver": str(local.binary) if local else None,
        "docker": docker.problem or str(docker.program),
        "environments": environments.facts(),
        "service": service.service_state(),
    }
    return Report(tuple(findings), facts)
