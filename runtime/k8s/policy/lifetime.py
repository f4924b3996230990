"""Start and end of a pod: probes, drain, grace."""

from __future__ import annotations

from runtime import teardown
from runtime.k8s.manifests import Manifests, arguments_of, at, in_seconds, option
from runtime.k8s.pods import LOAD_NOTE, Document
from runtime.k8s.policy.rules import Complaints, rule
from runtime.launch import PROXY_DRAIN_SECONDS

DEFAULT_GRACE = 30
DEFAULT_TIMEOUT = 300.0
DEFAULT_PERIOD, DEFAULT_FAILURES = 10, 3
ENDPOINTS = {
    "startupProbe": "/health/ready",
    "readinessProbe": "/health/ready",
    "livenessProbe": "/health/live",
}
LEAST_PRE_STOP = 5
LEAST_LIVENESS_SECONDS = 20


@rule("grace", "The grace period is longer than preStop, drain and exit together.")
def grace(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        drain = in_seconds(option(arguments_of(pods.server or {}), "--drain"), PROXY_DRAIN_SECONDS)
        stop, wait = teardown.longest_stop_seconds(drain), pre_stop_seconds(pods.server or {}) or 0
        given = pods.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE)
        if given <= wait + stop:
            parts = f"preStop {wait:g} s, drain {drain:g} s, exit {stop - drain:g} s"
            yield pods.name, f"terminationGracePeriodSeconds is {given}, but {parts} need {wait + stop:g} s."


@rule("pre-stop", "A pod waits before it drains, until no new requests are sent to it.")
def pre_stop(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        seconds = pre_stop_seconds(pods.server or {})
        if seconds is None or seconds < LEAST_PRE_STOP:
            has = "There is no preStop sleep" if seconds is None else f"preStop sleeps {seconds:g} s"
            yield pods.name, f"{has}; endpoints take longer to disappear."


@rule("lame-duck", "Open connections carry one more request while a pod drains.")
def lame_duck(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        if not in_seconds(option(arguments_of(pods.server or {}), "--lame-duck"), 0):
            yield pods.name, "Without --lame-duck, clients that keep their connections lose requests."


@rule("startup-budget", "The startup probe allows for the time to load.")
def startup_budget(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        probe = at(pods.server, "startupProbe")
        if probe is None:
            continue  # the rule probes names it
        budget = probe_budget(probe)
        timeout = in_seconds(option(arguments_of(pods.server or {}), "--timeout"), DEFAULT_TIMEOUT)
        load = in_seconds(at(pods.template, "metadata", "annotations", LOAD_NOTE), 0)
        if budget < max(timeout, load):
            yield (
                pods.name,
                f"startupProbe gives up after {budget:g} s; loading takes {load:g} s, at most {timeout:g} s.",
            )
        if timeout < load:
            yield pods.name, f"ew start gives up after {timeout:g} s, but loading takes {load:g} s."


@rule("probes", "Startup, readiness and liveness probes ask the proxy's health endpoints.")
def probes(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        ports = {port.get("name"): port.get("containerPort") for port in at(pods.server, "ports") or []}
        listens = int(option(arguments_of(pods.server or {}), "--port") or 8080)
        for kind, path in ENDPOINTS.items():
            probe = at(pods.server, kind)
            asked = at(probe, "httpGet", "port")
            if probe is None:
                yield pods.name, f"There is no {kind}."
            elif at(probe, "httpGet", "path") != path:
                yield pods.name, f"{kind} has to ask {path}, not {at(probe, 'httpGet', 'path')}."
            elif ports.get(asked, asked) != listens:
                yield pods.name, f"{kind} asks port {asked}; the proxy listens on {listens}."


@rule("liveness-patience", "The liveness probe does not end a pod that is merely busy.")
def liveness_patience(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        probe = at(pods.server, "livenessProbe")
        if probe and probe_budget(probe) < LEAST_LIVENESS_SECONDS:
            yield pods.name, f"livenessProbe ends the pod after {probe_budget(probe):g} s without an answer."


@rule("listens", "The proxy listens on all addresses, so that probes and the service reach it.")
def listens(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        host = option(arguments_of(pods.server or {}), "--host") or "127.0.0.1"
        if host not in ("0.0.0.0", "::"):
            yield pods.name, f"ew start listens on {host}; a pod needs --host 0.0.0.0 or ::."


@rule("foreground", "The service stays in the foreground, as the container's process.")
def foreground(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        if "--foreground" not in arguments_of(pods.server or {}):
            yield pods.name, "ew start without --foreground ends, and the container with it."


def probe_budget(probe: Document) -> float:
    """Seconds of failures until the probe counts as failed."""
    period = probe.get("periodSeconds", DEFAULT_PERIOD)
    return float(
        probe.get("initialDelaySeconds", 0) + period * probe.get("failureThreshold", DEFAULT_FAILURES)
    )


def pre_stop_seconds(container: Document) -> float | None:
    """How long preStop sleeps; None without one."""
    action = at(container, "lifecycle", "preStop")
    command = at(action, "exec", "command") or []
    if command[:1] == ["sleep"] and len(command) == 2:
        return in_seconds(str(command[1]), 0)
    seconds = at(action, "sleep", "seconds")
    return float(seconds) if seconds is not None else None
