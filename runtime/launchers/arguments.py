"""tritonserver's own arguments, and the MPI line around it for models on several GPUs.

Orders and variables are those of TensorRT-LLM's launch script; unlike that script, the line stays in the
foreground, and ranks above 0 listen nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.launch import METRICS_INTERVAL_MS, TRITON_EXIT_SECONDS, shm_prefix
from runtime.launchers.request import LaunchRequest, Parallel
from runtime.ports import LOOPBACK, TritonPorts

ORCHESTRATOR = {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1"}
LISTENERS = ("http", "grpc", "metrics")


def server_arguments(
    request: LaunchRequest,
    ports: TritonPorts,
    *,
    address: str = LOOPBACK,
    backend_directory: str | None = None,
) -> list[str]:
    """Everything after the binary for the server that clients talk to; the user's own options come last."""
    arguments = [
        f"--id=ew-{request.service_id}",
        f"--model-repository={request.repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model.model_id}" for model in request.models),
        *(f"--{listener}-address={address}" for listener in LISTENERS),
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        f"--metrics-interval-ms={METRICS_INTERVAL_MS}",
        f"--exit-timeout-secs={TRITON_EXIT_SECONDS}",
        "--disable-auto-complete-config",  # rendered configs are complete; completing costs 2 s
        f"--backend-config=python,shm-region-prefix-name={shm_prefix(request.service_id)}",
    ]
    if backend_directory:
        arguments.append(f"--backend-directory={backend_directory}")
    if request.engine == "cpu":
        # Our bridge is installed as the backend of that name, so it has the Python backend's settings.
        prefix = shm_prefix(request.service_id)
        arguments.append(f"--backend-config=tensorrtllm,shm-region-prefix-name={prefix}")
        arguments.append("--allow-gpu-metrics=false")
    return [*arguments, *request.triton_options]


def follower_arguments(request: LaunchRequest, rank: int) -> list[str]:
    """A rank above 0: loads the engine models only, which never finish loading there, and listens nowhere."""
    return [
        f"--model-repository={request.repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model.engine_model}" for model in request.models),
        *(f"--allow-{listener}=false" for listener in LISTENERS),
        f"--exit-timeout-secs={TRITON_EXIT_SECONDS}",
        "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix(request.service_id)}r{rank}-",
        *request.triton_options,
    ]


def with_parallel(
    request: LaunchRequest, parallel: Parallel, binary: str, server: Sequence[str], gpu_count: int
) -> list[str]:
    """The whole command line: the server alone, or the ranks under mpirun."""
    if parallel == "single":
        return [binary, *server]
    if parallel == "orchestrator":
        return [*_mpirun(request), "-n", "1", binary, *server, *orchestrator_arguments(gpu_count)]
    if parallel == "llmapi":
        ranks = str(request.world_size)
        return [*_mpirun(request), "-n", ranks, "trtllm-llmapi-launch", binary, *server]
    line = [*_mpirun(request), "-n", "1", binary, *server]
    for rank in range(1, request.world_size):
        line += [":", "-n", "1", binary, *follower_arguments(request, rank)]
    return line


def orchestrator_arguments(gpu_count: int) -> list[str]:
    """The orchestrator only hands requests on; without these it would hold memory on every GPU."""
    pools = [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(gpu_count)]
    return ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false", *pools]


def parallel_environment(parallel: Parallel) -> dict[str, str]:
    return dict(ORCHESTRATOR) if parallel == "orchestrator" else {}


def _mpirun(request: LaunchRequest) -> list[str]:
    return ["mpirun", "--allow-run-as-root", *(["--oversubscribe"] if request.oversubscribe else [])]
