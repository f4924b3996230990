"""Checks of what is configured, packaged and running."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from builder.package import load_package
from common.config import DeployConfig, load_config
from common.errors import ConfigError, EwError, PackageError, UsageError
from common.paths import home
from runtime import logs, ports, status
from runtime.doctor import logbook
from runtime.doctor.catalog import found
from runtime.doctor.finding import Finding

DEFAULT_PORT = 8080
KEY_FILES = ("keys.json", "api_key")


def check_project() -> Iterator[Finding]:
    """deploy/config.json and the packages it names."""
    if not home().config.exists():
        return
    try:
        config = load_config(home().config)
    except ConfigError as error:
        yield found("config_invalid", str(error), where=str(home().config))
        return
    yield from _packages(config)


def check_repository() -> Iterator[Finding]:
    """What lint says about the rendered repository; its severity, reason and cure."""
    if not any(home().repository.glob("*/config.pbtxt")):
        return
    from builder.lint import lint  # imported here: it needs protobuf, which no other check does

    for breach in lint(home().repository):
        rule, seen = breach.rule, f"{breach.rule.id}: {breach.message}"
        finding = found("repository_lint", seen, where=f"{breach.file}:{breach.line}", fix=rule.cure)
        yield replace(finding, severity=rule.severity, title=rule.title, cause=rule.why)


def check_service() -> Iterator[Finding]:
    """The recorded service, its models and the key files."""
    yield from _key_files()
    seen = status.status()
    if seen["state"] == "stopped":
        if not ports.is_free(DEFAULT_PORT):
            yield found("port_taken", f"port {DEFAULT_PORT}")
    elif seen["state"] == "stale":
        yield found("service_stale", ", ".join(model["model"] for model in seen["models"]))
    elif seen["state"] == "broken":
        yield found("service_broken", "; ".join(seen["last_errors"].values()))
    elif seen["state"] in ("ready", "unloaded", "degraded"):
        yield from _ended(seen["engines"])
        yield from _running(seen)


def check_logs() -> Iterator[Finding]:
    """What the logs of the running or last service say. A service that is up has outlived its errors."""
    outlived = service_state() in status.SOUND
    told: list[Finding] = []
    for path in map(logs.log_path, logs.LOGS):
        try:
            told += logbook.explain_file(path) if path.is_file() else []
        except (OSError, UsageError) as error:  # another user's, whose other logs may be readable
            yield found("log_unreadable", str(error), where=str(path))
    for finding in logbook.merged(told):
        is_error = finding.severity == "error"
        yield replace(finding, severity="warning") if outlived and is_error else finding


def service_state() -> str:
    try:
        return str(status.status()["state"])
    except EwError:
        return "unreadable"


def _packages(config: DeployConfig) -> Iterator[Finding]:
    for model_id, model in config.models.items():
        try:
            package = load_package(home().resolve(model.model_path))
        except PackageError as error:
            yield found("package_unusable", str(error), where=f"models.{model_id}", fix=error.hint)
            continue
        if package.manifest.engine.state == "pending" and model.engine == "cuda-trt":
            command = shlex.join(package.manifest.engine.command)
            yield found(
                "engine_pending",
                package.manifest.engine.reason,
                where=f"models.{model_id}",
                command=command,
            )


def _ended(engines: list[dict[str, Any]]) -> Iterator[Finding]:
    """The tritonservers of a running service that are no longer there."""
    for engine in engines:
        if engine["state"] == "ended":
            where = " ".join(filter(None, [engine["engine"], engine["env"]]))
            again = f"./ew restart --engine {engine['engine']}"
            if engine["env"]:
                again += f" --env {engine['env']}"
            served = f"the tritonserver of {', '.join(engine['models'])} ended"
            yield found("service_broken", served, where=where, command=again)


def _running(seen: dict[str, object]) -> Iterator[Finding]:
    models: list[dict[str, str]] = seen["models"]  # type: ignore[assignment]
    for model in models:
        if model["state"] == "UNLOADED":
            yield found(
                "model_unloaded", where=model["model"], command=f"./ew start --model {model['model']}"
            )
        elif model["state"] != "READY":
            yield found("model_not_ready", model["state"], where=model["model"])
    if not seen["proxy_ready"] and seen["state"] != "unloaded":
        yield found("proxy_not_ready", str(seen["url"]))


def _key_files() -> Iterator[Finding]:
    for name in KEY_FILES:
        path = home().run / name
        if path.exists() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield found("key_file_open", oct(path.stat().st_mode & 0o777), where=str(path))
