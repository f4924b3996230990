"""What the proxy benchmark starts: the sources, the proxy itself, and what it is compared with."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.proxy_client import Target
from benchmarks.triton_source import paced_triton
from proxy.keys import KeyStore

ROOT = Path(__file__).resolve().parent.parent
PATHS = {"direct": "/v2/models/m-tensorrt_llm/generate_stream", "litellm": "/v1/chat/completions"}
TOKENS_OF = {
    "direct": re.compile(rb'"output_ids":7'),
    "nginx": re.compile(rb'"output_ids":7'),
    "ew": re.compile(rb'"text":"([^"]+)"'),
    "litellm": re.compile(rb'"content":"(a+)"'),
}
START_SECONDS = 300.0
CPU_CLOCK_SCHEDULED = 2  # CPUCLOCK_SCHED of Linux, as clock_getcpuclockid puts it into a clock id


class Server:
    """A started target: its address and the processes whose CPU counts."""

    def __init__(self, target: Target, process: subprocess.Popen[bytes] | None) -> None:
        self.target = target
        self._root = psutil.Process(process.pid) if process else None

    def cpu_seconds(self) -> float:
        return sum(process_cpu_seconds(process.pid) for process in self._processes())

    def rss(self) -> int:
        return sum(process.memory_info().rss for process in self._processes())

    def _processes(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)] if self._root else []


def process_cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process by its own clock, which counts finer than /proc's hundredths."""
    return time.clock_gettime((~pid << 3) | CPU_CLOCK_SCHEDULED)


@contextmanager
def start_source(folder: Path, shape: tuple[int, int]) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.proxy_source", f"--port={port}"]
    command += [f"--times={folder / 'times'}", "--shape", *map(str, shape)]
    target = Target("direct", port, PATHS["direct"], TOKENS_OF["direct"])
    with started(command, port) as process:
        yield Server(target, process)


@contextmanager
def start_triton(folder: Path, shape: tuple[int, int]) -> Iterator[Server]:
    port = free_port()
    with paced_triton(folder, port, shape) as process:
        wait_for_port(port, process)
        yield Server(Target("direct", port, PATHS["direct"], TOKENS_OF["direct"]), process)


@contextmanager
def start_ew(folder: Path, source: int, options: argparse.Namespace) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "proxy", f"--config={write_package(folder)}", f"--port={port}"]
    command += [f"--triton=http://127.0.0.1:{source}", f"--workers={options.workers}", "--max-queue=5000"]
    key = KeyStore(folder / "keys.json").add("bench")
    command.append(f"--keys={folder / 'keys.json'}")
    target = Target("ew", port, "/api/v1/inference/stream", TOKENS_OF["ew"], key)
    with started(command, port) as process:
        yield Server(target, process)


@contextmanager
def start_nginx(folder: Path, source: int, options: argparse.Namespace) -> Iterator[Server]:
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, source=source))
    command = [options.nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with started(command, port) as process:
        yield Server(Target("nginx", port, PATHS["direct"], TOKENS_OF["nginx"]), process)


@contextmanager
def start_litellm(folder: Path, source: int, options: argparse.Namespace) -> Iterator[Server]:
    port = free_port()
    (folder / "litellm.yaml").write_text(LITELLM.format(source=source))
    command = [options.litellm, "--config", str(folder / "litellm.yaml"), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--num_workers", str(options.workers)]
    with started(command, port) as process:
        yield Server(Target("litellm", port, PATHS["litellm"], TOKENS_OF["litellm"], LITELLM_KEY), process)


START = {"ew": start_ew, "nginx": start_nginx, "litellm": start_litellm}
NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 8192; }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000;
  upstream source {{ server 127.0.0.1:{source}; keepalive 1024; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://source; proxy_http_version 1.1; proxy_set_header Connection "";
                 proxy_buffering off; }} }} }}
"""
LITELLM_KEY = "sk-" + "0123456789abcdef" * 2  # it does not start without one
LITELLM = """model_list:
  - model_name: m
    litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{source}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
general_settings: {{master_key: %s}}
""".replace("%s", LITELLM_KEY)


@contextmanager
def started(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until it answers on its port; its children end with it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{process.args!r} ended with {process.returncode} before it answered")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit(f"{process.args!r} did not answer within {START_SECONDS:g} s")


def write_package(folder: Path) -> Path:
    """A config whose model has a byte-level tokenizer: the source's token id is one character."""
    tokenizer_folder = folder / "package" / "tokenizer"
    tokenizer_folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tokenizer_folder / "tokenizer.json"))
    config = folder / "config.json"
    model = {"engine": "cpu", "model_path": str(folder / "package"), "max_batch_size": 1024}
    config.write_text(json.dumps({"models": {"m": model}}))
    return config


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
