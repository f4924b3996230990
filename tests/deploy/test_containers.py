"""Dockerfile.triton, .dockerignore and the scripts that the images carry; no image is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from builder.compat import containers, newest_container
from builder.data import load
from common.paths import SOURCE_ROOT
from common.version import VERSION
from scripts.check_container_base import Base, main, problems
from scripts.container_health import trouble

DOCKERFILE = SOURCE_ROOT / "Dockerfile.triton"
HADOLINT = Path(sys.prefix) / "bin" / "hadolint"
MAX_CONTEXT_BYTES = 4 << 20
ROW = newest_container()
FITTING = Base(ROW.triton, ROW.tensorrt_llm, ROW.python)


def arguments() -> dict[str, set[str]]:
    """ARG name -> the defaults it has, over all stages."""
    found: dict[str, set[str]] = {}
    for name, value in re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE.read_text(), re.M):
        found.setdefault(name, set()).add(value)
    return found


def stages() -> dict[str, str]:
    """The text of each stage by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing() -> None:
    done = hadolint(DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    worse = DOCKERFILE.read_text().replace("FROM ${CPU_BASE}", "FROM debian:latest")
    (tmp_path / "Dockerfile").write_text(worse.replace("USER 10001:10001", "USER root"))
    assert {"DL3007", "DL3002"} <= set(re.findall(r"DL\d+", hadolint(tmp_path / "Dockerfile").stdout))


def test_default_base_is_in_the_compatibility_table_and_can_build_engines() -> None:
    (tag,) = arguments()["TRITON_TAG"]
    row = next(row for row in containers() if row.triton == tag)
    (base,) = arguments()["TRITON_BASE"]
    assert base.replace("${TRITON_TAG}", tag) == row.tag
    assert row == newest_container()
    assert row.tensorrt_llm == load("compatibility")["engine_era"]["last_stable"]


def test_arguments_have_one_default_each_and_no_base_is_floating() -> None:
    assert all(len(defaults) == 1 for defaults in arguments().values())
    assert arguments()["VERSION"] == {VERSION}
    (cpu,) = arguments()["CPU_BASE"]
    assert re.fullmatch(r"debian:\d+\.\d+-slim", cpu)


@pytest.mark.parametrize("name", ["cpu", "triton"])
def test_the_served_stage(name: str) -> None:
    stage = stages()[name]
    assert "\nUSER 10001:10001\n" in stage
    assert stage.index("USER 10001") > stage.rindex("\nRUN ")
    assert '\nENTRYPOINT ["/usr/bin/tini", "--", "ew"]\n' in stage
    assert "scripts/container_health.py" in stage
    assert "\nVOLUME /var/lib/ew\n" in stage


def test_the_served_triton_image_installs_nothing_into_nvidias() -> None:
    assert not re.search(r"apt-get|pip|conda|uv ", stages()["triton"])
    assert "env -u PIP_CONSTRAINT" in stages()["triton-environment"]


def test_the_environment_needs_no_more_than_is_copied_for_it(tmp_path: Path) -> None:
    """The layer with the environment is made before ew's own code is there."""
    copies = re.findall(r"^COPY (\S.*)$", stages()["cpu-environment"], re.M)
    assert copies == re.findall(r"^COPY (\S.*)$", stages()["triton-environment"], re.M)
    for *sources, target in map(str.split, copies):
        for source in sources:
            copy = shutil.copytree if (SOURCE_ROOT / source).is_dir() else shutil.copy
            whole = tmp_path / target if not target.endswith("/") else tmp_path / target / Path(source).name
            whole.parent.mkdir(parents=True, exist_ok=True)
            copy(SOURCE_ROOT / source, whole)
    probe = "from runtime import bootstrap; bootstrap.announce('/x', 'base'); print(bootstrap.digest('base'))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and len(done.stdout.strip()) == 64, done.stderr


# --- the build context ----------------------------------------------------------------------------------


def ignored(name: str) -> bool:
    """Docker's rules, as far as .dockerignore uses them: the last pattern that fits decides."""
    verdict = False
    for line in (SOURCE_ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            parts = name.split("/")
            fits = (
                any(fnmatch(part, pattern[3:]) for part in parts)
                if pattern.startswith("**/")
                else pattern == "**" or parts[0] == pattern
            )
            verdict = not line.startswith("!") if fits else verdict
    return verdict


@pytest.mark.parametrize(
    "name",
    [".git/config", ".env", "cli/.env", "run/api_key", "run/keys.json", "proxy/server.pem", "proxy/tls.key"]
    + ["models/m/checkpoint/rank0.safetensors", "deploy/config.json", "logs/proxy.log", ".venv/bin/python"]
    + ["tests/tiny.py", ".cache/wheels/x.whl", "model_repository/m/config.pbtxt"],
)
def test_stays_out_of_the_context(name: str) -> None:
    assert ignored(name)


def test_the_context_is_small_and_whole() -> None:
    top = [path for path in SOURCE_ROOT.iterdir() if not ignored(path.name)]
    files = [
        file for path in top for file in (path.rglob("*") if path.is_dir() else (path,)) if file.is_file()
    ]
    sent = {name: file for file in files if not ignored(name := str(file.relative_to(SOURCE_ROOT)))}
    assert {"ew", "cli/__main__.py", "requirements/base.lock", "scripts/container_health.py"} <= set(sent)
    assert sum(file.stat().st_size for file in sent.values()) < MAX_CONTEXT_BYTES


# --- the base image's check -----------------------------------------------------------------------------


def test_a_base_that_fits_its_row_passes() -> None:
    assert problems(ROW.triton, FITTING, containers()) == []
    patched = replace(FITTING, python=f"{ROW.python.rsplit('.', 1)[0]}.99")
    assert problems(ROW.triton, patched, containers()) == []


@pytest.mark.parametrize(
    ("base", "named"),
    [
        (replace(FITTING, triton="25.01"), "25.01"),
        (replace(FITTING, triton=None), "none"),
        (replace(FITTING, tensorrt_llm="1.0.0"), "1.0.0"),
        (replace(FITTING, tensorrt_llm=None), "tensorrt_llm"),
        (replace(FITTING, python="3.10.12"), "3.10"),
    ],
)
def test_a_base_that_differs_is_named(base: Base, named: str) -> None:
    (problem,) = problems(ROW.triton, base, containers())
    assert named in problem


def test_an_unknown_tag_is_refused_with_the_known_ones() -> None:
    (problem,) = problems("99.99", FITTING, containers())
    assert "99.99" in problem and ROW.triton in problem


def test_the_check_as_the_build_runs_it(capfd: pytest.CaptureFixture[str]) -> None:
    """This machine has no NVIDIA image around it, so the base differs in everything but perhaps Python."""
    script = SOURCE_ROOT / "scripts" / "check_container_base.py"
    refused = subprocess.run([sys.executable, script, "--tag", ROW.triton], check=False)
    assert refused.returncode == 1
    assert "tensorrt_llm" in capfd.readouterr().err
    assert main(["--tag", ROW.triton, "--unknown", "accept"]) == 0
    assert "NVIDIA_TRITON_SERVER_VERSION" in capfd.readouterr().err


# --- the health check -----------------------------------------------------------------------------------


@contextmanager
def answering(status: int, after: float = 0.0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(after)
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Silent: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/health/ready"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
def test_health_follows_the_answer(status: int, healthy: bool) -> None:
    with answering(status) as url:
        assert (trouble(url) == "") is healthy


def test_health_fails_where_nothing_listens_or_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as url:
        gone = url
    assert "refused" in trouble(gone)
    monkeypatch.setattr("scripts.container_health.TIMEOUT_SECONDS", 0.1)
    with answering(200, after=0.5) as url:
        assert "timed out" in trouble(url)


def test_health_as_the_container_runs_it() -> None:
    script = SOURCE_ROOT / "scripts" / "container_health.py"
    for status, code in ((200, 0), (503, 1)):
        with answering(status) as url:
            done = subprocess.run([sys.executable, "-I", script], env={"EW_HEALTH_URL": url}, check=False)
        assert done.returncode == code
