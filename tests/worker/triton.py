"""A real tritonserver with the bridge, on free ports; models are loaded and unloaded by the tests."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from worker.backend import SOURCE_ROOT, install_backend

START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 60.0
SCALARS = {
    "input_lengths": "INT32",
    "request_output_len": "INT32",
    "num_return_sequences": "INT32",
    "end_id": "INT32",
    "pad_id": "INT32",
    "beam_width": "INT32",
    "temperature": "FP32",
    "runtime_top_k": "INT32",
    "runtime_top_p": "FP32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "min_tokens": "INT32",
    "seed": "UINT64",
    "return_log_probs": "BOOL",
    "return_generation_logits": "BOOL",
    "return_perf_metrics": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
    "exclude_input_in_output": "BOOL",
    "stop": "BOOL",
    "streaming": "BOOL",
    "lora_task_id": "UINT64",
}
RAGGED = {
    "input_ids": ("INT32", "-1"),
    "stop_words_list": ("INT32", "2, -1"),
    "bad_words_list": ("INT32", "2, -1"),
    "embedding_bias": ("FP32", "-1"),
    "guided_decoding_guide_type": ("STRING", "1"),
    "guided_decoding_guide": ("STRING", "1"),
}
OUTPUTS = {
    "output_ids": ("INT32", "-1, -1"),
    "sequence_length": ("INT32", "-1"),
    "cum_log_probs": ("FP32", "-1"),
    "output_log_probs": ("FP32", "-1, -1"),
    "batch_index": ("INT32", "1"),
    "sequence_index": ("INT32", "1"),
    "arrival_time_ns": ("INT64", "1"),
    "first_scheduled_time_ns": ("INT64", "1"),
    "first_token_time_ns": ("INT64", "1"),
    "last_token_time_ns": ("INT64", "1"),
    "num_input_tokens": ("INT32", "1"),
    "num_output_tokens": ("INT32", "1"),
}


class Refused(Exception):
    """An error that Triton answered with; `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def config_pbtxt(name: str, backend: str, decoupled: bool, exclude_input: bool, max_queue_size: int) -> str:
    """The model's configuration: the contract's tensors, as far as the tests use them."""
    inputs = [
        f'{{ name: "{tensor}" data_type: TYPE_{kind} dims: [1] reshape {{ shape: [] }} optional: true }}'
        for tensor, kind in SCALARS.items()
    ] + [
        f'{{ name: "{tensor}" data_type: TYPE_{kind} dims: [{dims}] '
        "allow_ragged_batch: true optional: true }"
        for tensor, (kind, dims) in RAGGED.items()
    ]
    outputs = [
        f'{{ name: "{tensor}" data_type: TYPE_{kind} dims: [{dims}] }}'
        for tensor, (kind, dims) in OUTPUTS.items()
    ]
    return f"""
name: "{name}"
backend: "{backend}"
max_batch_size: 64
model_transaction_policy {{ decoupled: {str(decoupled).lower()} }}
dynamic_batching {{ default_queue_policy {{ max_queue_size: {max_queue_size} }} }}
input [ {", ".join(inputs)} ]
output [ {", ".join(outputs)} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters: {{
  key: "exclude_input_in_output" value: {{ string_value: "{str(exclude_input).lower()}" }}
}}
"""


def free_ports(count: int) -> list[int]:
    with_ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_ports]
    for server in with_ports:
        server.close()
    return ports


def wait_until(done: Callable[[], Any], timeout_s: float = REQUEST_TIMEOUT_S) -> float:
    """Seconds until `done` held."""
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s:g} s"
        time.sleep(0.01)
    return time.monotonic() - started


@dataclass
class OpenStream:
    """A generate_stream response that is being read; `close` is what a leaving client does."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse

    def events(self) -> Iterator[dict[str, Any]]:
        while line := self.response.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    def close(self) -> None:
        self.response.close()
        self.connection.close()


class Triton:
    """One tritonserver process over a repository in `folder`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.repository = folder / "repository"
        self.repository.mkdir(parents=True)
        self.backends = install_backend(folder / "backends")
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        site_packages = Path(sysconfig.get_path("purelib"))
        server = site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        libraries = [site_packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "EW_LOG_DIR": str(self.folder / "logs"),
        }
        ports = {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}
        command = [
            str(server),
            f"--model-repository={self.repository}",
            f"--backend-directory={self.backends}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=5",
            *(f"--{service}-address=127.0.0.1" for service in ports),
            *(f"--{service}-port={port}" for service, port in ports.items()),
            *self.options,
        ]
        with (self.folder / "triton.log").open("wb") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, (self.folder / "triton.log").read_text()
            try:
                return self._request("GET", "/v2/health/ready")[0] == 200
            except OSError:
                return False

        wait_until(ready, START_TIMEOUT_S)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def add_model(
        self,
        name: str,
        package: Path | str,
        *,
        backend: str = "tensorrtllm",
        decoupled: bool = True,
        exclude_input: bool = True,
        max_queue_size: int = 0,
        options: dict[str, Any] | None = None,
        **worker: Any,
    ) -> Path:
        """Write a model; returns its version folder. `worker` is more of worker.json."""
        version = self.repository / name / "1"
        version.mkdir(parents=True)
        text = config_pbtxt(name, backend, decoupled, exclude_input, max_queue_size)
        (version.parent / "config.pbtxt").write_text(text)
        small = {"precision": "exact", "kv_cache_tokens": 8192, "max_batch_size": 16}
        options = {**(small if worker.get("engine", "cpu") == "cpu" else {}), **(options or {})}
        document = {"engine": "cpu", "root": str(SOURCE_ROOT), "package": str(package), "options": options}
        (version / "worker.json").write_text(json.dumps({**document, **worker}))
        return version

    def load(self, name: str) -> None:
        """Raises Refused with Triton's load error."""
        self._checked("POST", f"/v2/repository/models/{name}/load", {})

    def unload(self, name: str) -> None:
        self._checked("POST", f"/v2/repository/models/{name}/unload", {})

    def generate(self, model: str, **body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._checked("POST", f"/v2/models/{model}/generate", complete(body))
        return answer

    def stream(self, model: str, **body: Any) -> list[dict[str, Any]]:
        """All events of a streamed request."""
        stream = self.open_stream(model, **body)
        try:
            return list(stream.events())
        finally:
            stream.close()

    def open_stream(self, model: str, **body: Any) -> OpenStream:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=REQUEST_TIMEOUT_S)
        document = json.dumps(complete({"streaming": True, **body}))
        connection.request("POST", f"/v2/models/{model}/generate_stream", document)
        response = connection.getresponse()
        if response.status != 200:
            message = json.loads(response.read())["error"]
            connection.close()
            raise Refused(response.status, message)
        return OpenStream(connection, response)

    def metric(self, name: str, model: str, kind: str = "") -> float:
        """A value of /metrics; `kind` is the value of its further label, if it has one."""
        for line in self._request("GET", "/metrics", port=self.metrics_port)[1].decode().splitlines():
            if line.startswith(name + "{") and f'"{model}"' in line and f'"{kind}"' in f'{line}""':
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name} {kind} of {model}")

    def active(self, model: str) -> float:
        return self.metric("nv_trt_llm_request_metrics", model, "active")

    def workers(self, model: str) -> list[psutil.Process]:
        """The worker processes of a model below this server."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _is_worker(child, model)]

    def _checked(self, method: str, path: str, body: Any) -> Any:
        status, data = self._request(method, path, body)
        document = json.loads(data or b"{}")
        if status != 200:
            raise Refused(status, document["error"])
        return document

    def _request(self, method: str, path: str, body: Any = None, port: int = 0) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", port or self.http_port, timeout=REQUEST_TIMEOUT_S
        )
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def complete(body: dict[str, Any]) -> dict[str, Any]:
    """Fill in what every request must have."""
    filled = {"input_ids": [9, 33, 57, 200, 17], "request_output_len": 8, **body}
    return {"input_lengths": len(filled["input_ids"]), **filled}


def _is_worker(process: psutil.Process, model: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return command[1:3] == ["-m", "worker"] and command[-1] == model


def tokens_of(events: list[dict[str, Any]]) -> list[int]:
    """All output ids; Triton writes one id as a number and several as a list."""
    tokens: list[int] = []
    for event in events:
        ids = event["output_ids"]
        tokens += ids if isinstance(ids, list) else [ids]
    return tokens
