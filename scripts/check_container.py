"""Builds a target of Dockerfile.triton without a container engine, runs it locked down, and reports.

    python -m scripts.check_container                   # the target cpu: about five minutes, 3 GB of disk
    python -m scripts.check_container --target triton   # its steps, on a stand-in for NVIDIA's image

Needs root (or `unshare -r` rights), buildah and debootstrap, Debian's mirrors and the package index. Prints
one JSON document; exit code 1 when a check fails. PIP_CERT names the package index's certificate, if need be.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtime.demo import DEMO_MODEL
from scripts import container_build, container_sandbox
from scripts.container_build import Image, Target
from scripts.container_sandbox import Box, Running

HOME = "/var/lib/ew"
CERTIFICATE = "/tmp/ew-ca.pem"
READY_SECONDS, STOP_SECONDS = 120.0, 45.0
# Where people leave them by accident; none of these is for the image.
PLANTED = (
    ".env",
    "cli/.env",
    "run/api_key",
    "run/keys.json",
    "proxy/server.key",
    "common/ca.pem",
    ".git/config",
)


@dataclass
class Report:
    """The checks so far, by name: whether they passed, and what was seen."""

    checks: dict[str, dict[str, object]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, passed: bool, seen: object = "") -> None:
        self.checks[name] = {"passed": passed, "seen": seen}
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {seen}", file=sys.stderr)

    @property
    def passed(self) -> bool:
        return all(check["passed"] for check in self.checks.values())


def check(target: Target, base: str | None, work: Path) -> Report:
    """Build, inspect and run one target in `work`, an empty folder."""
    report = Report()
    canary = f"canary-{secrets.token_hex(16)}"
    context, home = work / "context", work / "home"
    container_build.copy_context(context)
    plant(context, canary)
    began = time.monotonic()
    given = base or container_build.make_base(target)
    image = container_build.build(
        target, given, context, build_secrets(work, canary), f"localhost/ew:{target}"
    )
    report.figures["build_seconds"] = round(time.monotonic() - began, 1)
    check_configuration(image, report)
    check_secrets(image, canary, report)
    home.mkdir()
    os.chown(home, *image.user)
    with container_build.mounted(image.name) as root, container_build.mounted(given) as before:
        report.figures["context_bytes"] = _context_bytes(root / "opt/ew")
        if target == "triton":
            changed = container_build.changed_files(before, root)
            report.note("nothing of NVIDIA's image is changed", not changed, changed[:5])
        _check_runs(image, root, home, work / "output.log", report)
    return report


def plant(context: Path, canary: str) -> None:
    """Put the canary where .dockerignore must keep it from the image."""
    for name in PLANTED:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(canary, encoding="utf-8")


def build_secrets(work: Path, canary: str) -> list[str]:
    """pip's settings as a build secret, with the canary in them, and the certificate where there is one."""
    lines = ["[global]", f"# {canary}"]
    certificate = os.environ.get("PIP_CERT")
    if certificate:
        lines.append("cert = /run/secrets/ca")
    settings = work / "pip.conf"
    settings.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [f"id=pip,src={settings}", *([f"id=ca,src={certificate}"] if certificate else [])]


def check_configuration(image: Image, report: Report) -> None:
    """What the image says of itself to a container engine."""
    config = image.config
    report.note("numeric user that is not root", image.user[0] > 0, config["User"])
    report.note("an init is process 1", config["Entrypoint"][0] == "/usr/bin/tini", config["Entrypoint"])
    report.note("health check", bool(config["Healthcheck"]["Test"]), config["Healthcheck"]["Test"])
    report.note("SIGTERM stops it", config["StopSignal"] == "SIGTERM", config["StopSignal"])
    report.note("its state is on a volume", HOME in config["Volumes"], config["Volumes"])
    labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
    wanted = {"title", "description", "licenses", "version", "revision"}
    report.note("labels", wanted <= labels, sorted(wanted - labels))


def check_secrets(image: Image, canary: str, report: Report) -> None:
    """Whether the canary got into a layer; a text that is in one shows that the search works."""
    control = (container_build.ROOT / "LICENSE").read_bytes()[:200]
    found = container_build.layers_hold(image, [canary.encode(), control])
    report.note("the search of the layers finds what is there", control in found)
    report.note("no secret in any layer", canary.encode() not in found)


def _context_bytes(root: Path) -> int:
    """What came from the build context: everything but the environment and the compiled files."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    kept = [path for path in files if not {".venv", "__pycache__"} & set(path.relative_to(root).parts)]
    return sum(path.stat().st_size for path in kept)


def _check_runs(image: Image, root: Path, home: Path, log: Path, report: Report) -> None:
    def box(*command: str, network: bool = False) -> Box:
        environment = image.environment | (
            {"PIP_CERT": CERTIFICATE} if network and "PIP_CERT" in os.environ else {}
        )
        volumes = ((str(home), HOME), *(_network_files() if network else ()))
        entry = (*image.config["Entrypoint"], *command)
        return Box(str(root), entry, environment, volumes, user=image.user, folder=HOME, network=network)

    with container_sandbox.started(box("demo", "--once", network=True), log) as running:
        code = running.wait(600)
        report.note("demo on an empty volume", code == 0, _end(log) if code else code)
    if code:
        return  # nothing to serve
    serve = box("start", "--foreground", "--host=0.0.0.0", f"--model={DEMO_MODEL}")
    with _serving(serve, image, log, report) as running:
        if report.passed:
            _check_service(running, report)
            _check_stop(running, report)
    with _serving(serve, image, log, report) as running:
        killed = running.execute(
            "/bin/sh", "-c", "kill -9 $(grep -lx tritonserver /proc/[0-9]*/comm | cut -d/ -f3)"
        )
        report.note("fails when tritonserver dies", killed.returncode == 0 and running.wait(STOP_SECONDS) > 0)


def _network_files() -> tuple[tuple[str, str], ...]:
    """What a container engine puts in, and the certificate of the package index."""
    certificate = os.environ.get("PIP_CERT")
    files = (("/etc/resolv.conf", "/etc/resolv.conf"), ("/etc/hosts", "/etc/hosts"))
    return (*files, *(((certificate, CERTIFICATE),) if certificate else ()))


@contextmanager
def _serving(box: Box, image: Image, log: Path, report: Report) -> Iterator[Running]:
    """The service, once the image's own health check says that it is ready. No network but loopback."""
    health = image.config["Healthcheck"]["Test"][1:]
    began = time.monotonic()
    with container_sandbox.started(box, log) as running:
        first = running.execute(*health).returncode
        ready = _until(lambda: running.execute(*health).returncode == 0, READY_SECONDS)
        report.figures["ready_seconds"] = round(time.monotonic() - began, 1)
        report.note(
            "the health check waits for the service", first != 0 and ready, "" if ready else _end(log)
        )
        yield running


def _check_service(running: Running, report: Report) -> None:
    answer = running.execute("ew", "infer", "What is the capital of France?")
    report.note("answers without a network", "Paris" in answer.stdout, answer.stdout.strip() or answer.stderr)
    written = running.execute("/bin/sh", "-c", "touch /x || touch /opt/ew/x || touch /etc/x || touch /var/x")
    report.note(
        "the root file system is read-only", "Read-only" in written.stderr and written.returncode != 0
    )
    status = running.execute("cat", "/proc/1/status").stdout.splitlines()
    fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    rights = {name: fields[name] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs")}
    without = int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0 and fields["NoNewPrivs"] == "1"
    report.note("no rights", without and not fields["Uid"].startswith("0"), rights)
    running.execute("/bin/sh", "-c", "(sleep 0.1 &)")
    time.sleep(1)
    zombies = [pid for pid, state in running.processes().items() if state == "Z"]
    report.note("no zombies", not zombies, zombies)


def _check_stop(running: Running, report: Report) -> None:
    began = time.monotonic()
    running.signal(signal.SIGTERM)
    code = running.wait(STOP_SECONDS)
    seconds = round(time.monotonic() - began, 1)
    report.figures["stop_seconds"] = seconds
    report.note("SIGTERM ends it with exit code 0", code == 0, f"exit code {code} after {seconds} s")


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.3)
    return False


def _end(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", choices=("cpu", "triton"), default="cpu")
    parser.add_argument(
        "--base", help="base image that buildah can get  [default: one that debootstrap makes]"
    )
    options = parser.parse_args(arguments)
    if missing := container_build.obstacle() or container_sandbox.obstacle():
        print(f"Error: images cannot be checked here: {missing}.", file=sys.stderr)
        return 5
    with tempfile.TemporaryDirectory(prefix="ew-container-") as folder:
        report = check(options.target, options.base, Path(folder))
    print(json.dumps({"target": options.target, "passed": report.passed, **vars(report)}, indent=2))
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
