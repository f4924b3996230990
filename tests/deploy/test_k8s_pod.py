"""The cpu overlay's own command lines, run here as its pods would: build, wait, serve, probes, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.config import parse_config
from common.paths import SOURCE_ROOT
from proxy.keys import KeyStore
from runtime.k8s.build import kustomize
from runtime.k8s.manifests import Manifests, Pods, arguments_of, at, parse_manifests
from runtime.k8s.overlay import render_overlay
from runtime.k8s.policy.lifetime import pre_stop_seconds, probe_budget
from runtime.k8s.tree import write_tree
from runtime.k8s.values import parse_values
from tests.e2e.conftest import byte_tokenizer, free_port
from tests.tiny import write_hf

pytestmark = pytest.mark.e2e

POD_HOME = "/var/lib/ew"
ANSWER = 3000  # tokens: some seconds of streaming
SIZES = {"max_batch_size": 4, "max_input_len": 64, "max_output_len": ANSWER}


@dataclass(frozen=True)
class Node:
    """A folder that stands for a pod's /var/lib/ew, and a PATH with ew on it."""

    home: Path
    port: int

    def environment(self, container: dict[str, Any]) -> dict[str, str]:
        names = {item["name"]: item.get("value") for item in container.get("env") or []}
        plain = {
            name: value.replace("/etc/ew", str(self.home / "etc")) for name, value in names.items() if value
        }
        path = f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **plain, "EW_HOME": str(self.home), "PATH": path}

    def command(self, container: dict[str, Any]) -> list[str]:
        """The container's line, on a free port instead of 8080."""
        if container.get("command"):
            return [str(part) for part in container["command"]]
        return ["ew", *(part.replace("8080", str(self.port)) for part in arguments_of(container))]

    def run(self, container: dict[str, Any], seconds: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(container),
            env=self.environment(container),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def get(self, path: str) -> int:
        """A probe, as the kubelet sends it."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def manifests(folder: Path) -> Manifests:
    """The cpu overlay for a tiny random model, which a local folder holds."""
    source = write_hf("llama", folder / "hf")
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    settings["max_position_embeddings"] = 2 * ANSWER
    (source / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (source / "tokenizer.json").write_text(json.dumps(byte_tokenizer()), encoding="utf-8")
    entry = {"engine": "cpu", "model_path": "models/tiny", "dtype": "float32", **SIZES}
    rendered = render_overlay(
        parse_config({"models": {"tiny": entry}}), parse_values((f"source={source}", "drain_seconds=20"))
    )
    write_tree(rendered, folder / "tree")
    return parse_manifests(kustomize(folder / "tree" / "overlays" / "cpu"), "built")


@pytest.fixture(scope="module")
def node(folder: Path, manifests: Manifests) -> Node:
    """Config and keys mounted, ew on the path."""
    made = Node(folder / "home", free_port())
    for part in ("bin", "deploy", "models", "etc/keys"):
        (made.home / part).mkdir(parents=True)
    program = made.home / "bin" / "ew"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {SOURCE_ROOT}/cli/__main__.py "$@"\n')
    program.chmod(0o755)
    texts = [at(item, "data", "config.json") for item in manifests.of_kind("ConfigMap")]
    (made.home / "deploy" / "config.json").write_text(next(text for text in texts if text))
    return made


@pytest.fixture(scope="module")
def server(manifests: Manifests) -> Pods:
    return manifests.servers()[0]


@pytest.fixture(scope="module")
def built(node: Node, manifests: Manifests) -> Node:
    """After the build job."""
    job = next(part for part in manifests.pods() if part.is_job)
    done = node.run(job.containers[0], 120)
    assert done.returncode == 0, done.stdout + done.stderr
    return node


@pytest.fixture
def serving(built: Node, server: Pods) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process from its start until it is ready, as its startup probe sees it."""
    container = server.server or {}
    process = subprocess.Popen(
        built.command(container),
        env=built.environment(container),
        cwd=built.home,
        stdout=(built.home / "out.txt").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for_startup(built, container["startupProbe"], process)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(90)


def _wait_for_startup(node: Node, probe: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + probe_budget(probe)
    while node.get(probe["httpGet"]["path"]) != 200:
        assert process.poll() is None, (node.home / "out.txt").read_text()
        assert time.monotonic() < deadline, "the startup probe's budget is used up"
        time.sleep(0.2)


def test_pods_wait_while_the_package_is_not_built(node: Node, server: Pods, tmp_path: Path) -> None:
    (tmp_path / "bin").symlink_to(node.home / "bin")
    with pytest.raises(subprocess.TimeoutExpired):
        Node(tmp_path, node.port).run(server.spec["initContainers"][0], 5)


def test_the_jobs_package_ends_the_wait_and_a_second_run_changes_nothing(
    built: Node, server: Pods, manifests: Manifests
) -> None:
    assert built.run(server.spec["initContainers"][0], 60).returncode == 0
    manifest = next(built.home.glob("models/tiny/cpu-*/ew.json"))
    before = manifest.read_bytes()
    job = next(part for part in manifests.pods() if part.is_job)
    assert built.run(job.containers[0], 60).returncode == 0
    assert manifest.read_bytes() == before


def test_a_stream_that_runs_when_the_pod_is_ended_is_not_cut(
    built: Node, server: Pods, serving: subprocess.Popen[bytes]
) -> None:
    container = server.server or {}
    for name in ("readinessProbe", "livenessProbe"):
        assert built.get(container[name]["httpGet"]["path"]) == 200
    key = KeyStore(built.home / "etc" / "keys" / "keys.json").add("cluster")
    stream = _stream(built, key)
    first = stream.readline()
    began = time.monotonic()
    serving.send_signal(signal.SIGTERM)
    while built.get(container["readinessProbe"]["httpGet"]["path"]) == 200:
        time.sleep(0.05)
    assert serving.poll() is None
    rest = stream.read()
    assert first and f'"completionTokens":{ANSWER}'.encode() in rest.replace(b" ", b"")
    assert serving.wait(60) == 0
    left = server.spec["terminationGracePeriodSeconds"] - (pre_stop_seconds(container) or 0)
    assert time.monotonic() - began < left


def _stream(node: Node, key: str) -> Any:
    body = {"modelId": "tiny", "prompt": "abc", "maxTokens": ANSWER, "minTokens": ANSWER}
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.port}/api/v1/inference/stream",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "X-API-Key": key},
    )
    return urllib.request.urlopen(request, timeout=60)
