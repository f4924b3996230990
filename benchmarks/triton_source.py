"""The real tritonserver for benchmarks: with benchmarks/paced_model.py in it, or with the bridge."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runtime.launch import libpython_folder
from worker.backend import install_backend, pytriton_folder

MODEL = "m-tensorrt_llm"
INPUTS = (
    ("input_ids", "INT32", "-1"),
    ("input_lengths", "INT32", "1"),
    ("request_output_len", "INT32", "1"),
    ("end_id", "INT32", "1"),
    ("pad_id", "INT32", "1"),
    ("temperature", "FP32", "1"),
    ("runtime_top_k", "INT32", "1"),
    ("runtime_top_p", "FP32", "1"),
    ("seed", "UINT64", "1"),
    ("streaming", "BOOL", "1"),
    ("exclude_input_in_output", "BOOL", "1"),
    ("stop", "BOOL", "1"),
)
CONFIG = """name: "{name}"
backend: "{backend}"
max_batch_size: 1024
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
input [ {inputs} ]
output [
  {{ name: "output_ids" data_type: TYPE_INT32 dims: [ -1, -1 ] }},
  {{ name: "sequence_length" data_type: TYPE_INT32 dims: [ -1 ] }}
]
"""


@contextmanager
def paced_triton(folder: Path, port: int, shape: tuple[int, int]) -> Iterator[subprocess.Popen[bytes]]:
    """The paced model on `port` of loopback; `folder` is where it finds its pace and its times."""
    write_model(folder, "python", {"model.py": Path(__file__).with_name("paced_model.py").read_text()})
    (folder / "pace").write_text("0.02")
    found = {"EW_BENCH": str(folder), "EW_BENCH_SHAPE": f"{shape[0]}x{shape[1]}"}
    with triton_process(folder, port, found) as process:
        yield process


@contextmanager
def triton_process(
    folder: Path, port: int, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """tritonserver on `port` of loopback, with the models of `folder`."""
    package = pytriton_folder()
    libraries = [str(package.parent / "nvidia_pytriton.libs"), str(libpython_folder())]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        **variables,
    }
    command = [
        str(package / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={folder / 'repository'}",
        f"--backend-directory={install_backend(folder / 'backends')}",
        f"--http-port={port}",
        "--http-address=127.0.0.1",
        "--http-thread-count=16",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--disable-auto-complete-config",
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def write_model(folder: Path, backend: str, files: Mapping[str, str]) -> None:
    """The model with the bridge's tensors, and the files of its version."""
    version = folder / "repository" / MODEL / "1"
    version.mkdir(parents=True)
    for name, text in files.items():
        (version / name).write_text(text)
    inputs = ",\n".join(
        f'{{ name: "{name}" data_type: TYPE_{kind} dims: [ {size} ] optional: true }}'
        for name, kind, size in INPUTS
    )
    text = CONFIG.format(name=MODEL, backend=backend, inputs=inputs)
    (version.parent / "config.pbtxt").write_text(text)
