"""The real thing: convert, render, tritonserver, worker and proxy, through the command line, on free ports.

`service` is the demo model, running for the whole session. Tests that start and stop by themselves take a
home folder of their own with a random model that loads fast: `tiny`, or `long`, whose answers take seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from builder.convert import convert
from builder.request import ConvertRequest
from common.paths import SOURCE_ROOT
from runtime import ports
from runtime.demo import DEMO_MODEL
from runtime.processes import processes_of, terminate
from tests.tiny import write_hf

SHM = Path("/dev/shm")
COMMAND_SECONDS = 240
TINY_MODEL = "tiny"
LONG_ANSWER = 2000  # tokens


@dataclass(frozen=True)
class Installation:
    """A home folder, and the command line in it."""

    home: Path
    port: int
    model: str = DEMO_MODEL

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), *arguments]

    def spawn_environment(self) -> dict[str, str]:
        return {**os.environ, "EW_HOME": str(self.home)}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.spawn_environment(), **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def start_arguments(self, *options: str) -> list[str]:
        return ["start", "--model", self.model, "--port", str(self.port), *options]

    def start(self, *options: str) -> dict[str, Any]:
        """`ew start` until ready; returns its JSON document."""
        done = self.run(*self.start_arguments("--json", *options))
        assert done.returncode == 0, done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return document

    def stop(self) -> None:
        done = self.run("stop", "--json")
        assert done.returncode == 0, done.stdout + done.stderr

    def state(self) -> dict[str, Any]:
        """run/service.json as it is on the disk."""
        document: dict[str, Any] = json.loads((self.home / "run" / "service.json").read_text())
        return document

    def kill(self) -> None:
        """End what a test left running, at once; how `ew stop` ends it, other tests see."""
        if not (self.home / "run" / "service.json").exists():
            return
        service_id = self.state()["service_id"]
        while processes := processes_of(service_id):
            terminate(processes, 0)
        for region in SHM.glob(f"ew-{service_id}-*"):
            region.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunningService:
    """Addresses of a service that is up. `triton_grpc` is host:port."""

    installation: Installation
    model: str
    url: str
    api_key: str
    triton_url: str
    triton_grpc: str
    metrics_url: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "X-API-Key": self.api_key}


def as_service(installation: Installation, document: dict[str, Any], model: str) -> RunningService:
    """The addresses in the document that `ew start --json` printed."""
    listening = document["ports"]
    return RunningService(
        installation=installation,
        model=model,
        url=f"http://127.0.0.1:{listening['proxy']}",
        api_key=Path(document["key_file"]).read_text().strip(),
        triton_url=f"http://127.0.0.1:{listening['triton_http']}",
        triton_grpc=f"127.0.0.1:{listening['triton_grpc']}",
        metrics_url=f"http://127.0.0.1:{listening['triton_metrics']}/metrics",
    )


def free_port() -> int:
    with ports.reserve_any() as reserved:
        return ports.port_of(reserved)


def make_installation(home: Path) -> Installation:
    """An empty home folder that shares packages and cache with the checkout."""
    for name in ("models", ".cache"):
        (SOURCE_ROOT / name).mkdir(exist_ok=True)
        (home / name).symlink_to(SOURCE_ROOT / name)
    return Installation(home, free_port())


def left_behind(service_id: str) -> list[str]:
    """Processes and shared memory that carry the mark of a service."""
    mark = f"EW_SERVICE={service_id}".encode()  # its servers have a number behind it
    found = [str(region) for region in SHM.glob(f"ew-{service_id}-*")]
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if any(entry.startswith(mark) for entry in environ.read_bytes().split(b"\0")):
                found.append(environ.parent.name)
        except OSError:  # gone meanwhile
            continue
    return found


@pytest.fixture(scope="session")
def prepared_model() -> str:
    """The demo model's id, after download and conversion into the checkout's models/."""
    home = Installation(SOURCE_ROOT, 0)
    code = "from runtime import demo; demo.ensure_model(None, print)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=SOURCE_ROOT,
        env={**home.spawn_environment(), "PYTHONPATH": str(SOURCE_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return DEMO_MODEL


@pytest.fixture(scope="session")
def tiny_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted random Llama over single bytes: 128 positions, no chat template."""
    return convert_tiny(tmp_path_factory.mktemp("tiny"), positions=128, answer=64)


@pytest.fixture(scope="session")
def long_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with room for answers of LONG_ANSWER tokens, which take seconds."""
    return convert_tiny(tmp_path_factory.mktemp("long"), positions=2 * LONG_ANSWER, answer=LONG_ANSWER)


def convert_tiny(folder: Path, *, positions: int, answer: int) -> Path:
    source = write_hf("llama", folder / "hf")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = positions
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (source / "tokenizer.json").write_text(json.dumps(byte_tokenizer()), encoding="utf-8")
    request = ConvertRequest(str(source), folder / TINY_MODEL, dtype="float32", stage="checkpoint")
    convert(replace(request, max_batch_size=8, max_input_len=64, max_output_len=answer))
    return folder / TINY_MODEL


@pytest.fixture
def tiny(tmp_path: Path, tiny_package: Path) -> Iterator[Installation]:
    """A home folder of its own with a copy of the tiny package, which it may damage."""
    yield from home_with(tiny_package, tmp_path)


@pytest.fixture
def long(tmp_path: Path, long_package: Path) -> Iterator[Installation]:
    """Like `tiny`, for tests in which streams must still run while something else happens."""
    yield from home_with(long_package, tmp_path)


def home_with(package: Path, home: Path) -> Iterator[Installation]:
    """Whatever runs in it is killed at the end."""
    shutil.copytree(package, home / "models" / TINY_MODEL)
    made = Installation(home, free_port(), model=f"models/{TINY_MODEL}")
    yield made
    made.kill()


def byte_tokenizer() -> dict[str, Any]:
    """tokenizer.json of a vocabulary of bytes: ids 0 to 2 are special, 3 to 258 the bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, prepared_model: str) -> Iterator[RunningService]:
    """The demo model, served; shared by all tests that don't stop it."""
    installation = make_installation(tmp_path_factory.mktemp("service"))
    configure(installation)
    yield as_service(installation, installation.start(), prepared_model)
    service_id = installation.state()["service_id"]
    installation.stop()
    assert left_behind(service_id) == []


def configure(installation: Installation, **settings: Any) -> None:
    """deploy/config.json with the demo model in f32, other settings as given."""
    entry = {
        "engine": "cpu",
        "model_path": f"models/{DEMO_MODEL}",
        "max_input_len": 6144,
        "max_output_len": 2048,
        "precision": "exact",
        **settings,
    }
    config = installation.home / "deploy" / "config.json"
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps({"models": {DEMO_MODEL: entry}}))
