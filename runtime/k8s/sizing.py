"""What one copy of the service, one build and their volume need, worked out from the plan of each model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from builder.compat import Container, RuntimeChoice
from builder.convert import convert
from builder.gpus import GIB
from builder.manifest import Manifest
from builder.package import load_package
from builder.plan import Plan
from builder.request import ConvertRequest
from common.config import ModelConfig
from common.errors import PackageError, ResourceError, UsageError
from common.paths import home
from runtime.k8s.values import Values

MIB = 2**20
RANK_LIBRARIES = 4 * GIB  # CUDA, TensorRT-LLM and their host buffers, for each rank
SERVER_MEMORY = 3 * GIB  # tritonserver, its Python models and the proxy
CPU_WEIGHT_BYTES = {"exact": 4.0, "fast": 2.0, "int8": 1.1}
CPU_FULL_LENGTH_REQUESTS = 4
START_SECONDS = {"cpu": 60, "engine": 90, "pytorch": 300}  # without reading weights
SAFETY = 2
SHM_BASE = 1 * GIB
SHM_RANK = 1 * GIB
DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class ModelNeeds:
    """Figures of one model in bytes; `source` is what the build job converts."""

    model_id: str
    source: str
    weights: int
    weights_per_rank: int
    kv_per_token: int
    build_memory: int
    ranks: int


@dataclass(frozen=True)
class Resources:
    """Of one pod: CPUs, memory with /dev/shm in it, and /dev/shm, in bytes; GPUs."""

    cpus: int
    memory: int
    shm: int
    gpus: int = 0


def needs_of(model_id: str, model: ModelConfig, values: Values, container: Container, era: str) -> ModelNeeds:
    """From the package where it is here, else from a plan of its source.

    Raises:
        UsageError: what the cluster is to convert is not known.
        ResourceError: the model does not fit the pool's GPU.
    """
    package = _package(model_id, model, values)
    source = _wanted_source(model_id, values) or (package.source.model if _is_on_hub(package) else "")
    if not source:
        raise _no_source(model_id, model, package)
    figures = package.plan if package else _planned(model_id, model, values, container, era, source)
    return ModelNeeds(
        model_id,
        source,
        weights=int(figures["checkpoint_bytes"]),
        weights_per_rank=int(figures["weights_per_rank"]),
        kv_per_token=int(figures["kv_bytes_per_token"]),
        build_memory=max(int(figures["build_host_memory"]), int(figures["convert_host_memory"])),
        ranks=model.tensor_parallel_size * model.pipeline_parallel_size,
    )


def _wanted_source(model_id: str, values: Values) -> str:
    return values.sources.get(model_id) or values.sources.get("", "")


def _package(model_id: str, model: ModelConfig, values: Values) -> Manifest | None:
    """The package here, if its figures are those of what will be served."""
    try:
        manifest = load_package(home().resolve(model.model_path)).manifest
    except PackageError:
        return None
    layout = manifest.layout
    same = (layout.tp_size, layout.pp_size) == (model.tensor_parallel_size, model.pipeline_parallel_size)
    wanted = _wanted_source(model_id, values)
    other = _is_on_hub(manifest) and wanted not in ("", manifest.source.model)
    return manifest if same and not other and "weights_per_rank" in manifest.plan else None


def _is_on_hub(manifest: Manifest | None) -> TypeGuard[Manifest]:
    """A folder of this machine is nothing that a cluster could convert."""
    return manifest is not None and manifest.source.kind == "hub"


def _no_source(model_id: str, model: ModelConfig, package: Manifest | None) -> UsageError:
    here = f"it was made from the folder {package.source.model}" if package else "it is no package here"
    return UsageError(
        f"What the cluster converts for {model_id} is not known.",
        why=f"{model.model_path}: {here}.",
        hint=f"Name its Hugging Face id: --set source.{model_id}=ORGANISATION/NAME",
        code="no_source",
    )


def _planned(
    model_id: str, model: ModelConfig, values: Values, container: Container, era: str, source: str
) -> Mapping[str, int]:
    plan = convert(plan_request(model, values, container, era, source)).plan
    _refuse_misfit(model_id, plan)
    return plan.summary()


def plan_request(
    model: ModelConfig, values: Values, container: Container, era: str, source: str
) -> ConvertRequest:
    """The conversion that the build job makes, as a plan."""
    runtime: RuntimeChoice = "pytorch" if era == "pytorch" else "engine"
    return ConvertRequest(
        model=values.plan_from or source,
        output=Path(),
        stage="plan",
        dtype=model.dtype,
        tp_size=model.tensor_parallel_size,
        pp_size=model.pipeline_parallel_size,
        max_batch_size=model.max_batch_size,
        max_input_len=model.max_input_len,
        max_output_len=model.max_output_len,
        gpu=values.gpu if era != "cpu" else None,
        runtime=runtime,
        trtllm_version=container.tensorrt_llm,
    )


def _refuse_misfit(model_id: str, plan: Plan) -> None:
    if not plan.fits:
        raise ResourceError(
            f"{model_id} does not fit as it is set.",
            why=" ".join(plan.problems),
            hint="Change its sizes or parallel sizes in the config, or choose another pool: --set gpu=NAME",
            code="plan_does_not_fit",
        )


def server_resources(
    needs: Mapping[str, ModelNeeds], models: Mapping[str, ModelConfig], values: Values, gpus: int
) -> Resources:
    """One serving pod; on several nodes, one of them with `gpus` GPUs."""
    shm = quantity_bytes(values.shm) if values.shm else SHM_BASE + SHM_RANK * max(1, gpus)
    if gpus:
        weights = _weights_of_pod(needs, gpus)
        cached = sum(model.triton.kv_cache_host_memory_bytes + model.triton.lora_cache_host_memory_bytes
                     for model in models.values())  # fmt: skip
        memory = SERVER_MEMORY + gpus * RANK_LIBRARIES + weights + cached
    else:
        memory = SERVER_MEMORY + sum(_cpu_engine_memory(needs[name], models[name]) for name in models)
    memory = quantity_bytes(values.memory) if values.memory else _whole_gib(memory + shm)
    cpus = int(values.cpu) if values.cpu else (4 if not gpus else 4 + 4 * gpus)
    return Resources(cpus, memory, shm, gpus)


def _cpu_engine_memory(need: ModelNeeds, model: ModelConfig) -> int:
    """The cpu engine keeps its own copy of the weights and a KV cache for some requests of full length."""
    weights = need.weights / DTYPE_BYTES[model.dtype] * CPU_WEIGHT_BYTES[model.precision]
    length = model.max_input_len + model.max_output_len
    tokens = model.kv_cache_tokens or CPU_FULL_LENGTH_REQUESTS * length
    kv_share = CPU_WEIGHT_BYTES[model.precision] / DTYPE_BYTES[model.dtype]
    return math.ceil(weights + tokens * need.kv_per_token * kv_share)


def build_resources(need: ModelNeeds, era: str) -> Resources:
    """The job that converts and builds: trtllm-build needs one GPU of the pool, whatever the ranks."""
    return Resources(4, _whole_gib(need.build_memory + 2 * GIB), GIB, 1 if era == "engine" else 0)


def load_seconds(needs: Mapping[str, ModelNeeds], values: Values, era: str, gpus: int) -> int:
    """From the container's start until the models answer, without a reserve; each node reads its part."""
    if values.load_seconds:
        return values.load_seconds
    read = _weights_of_pod(needs, gpus) / (values.read_mib_per_second * MIB)
    return math.ceil(START_SECONDS[era] + read)


def _weights_of_pod(needs: Mapping[str, ModelNeeds], gpus: int) -> int:
    return sum(need.weights_per_rank * min(max(1, gpus), need.ranks) for need in needs.values())


def storage_bytes(needs: Mapping[str, ModelNeeds], era: str) -> int:
    """Download, checkpoint and engine of every model, and as much again: a new version beside the old."""
    parts = {"cpu": 2, "engine": 3, "pytorch": 2}[era]
    return _whole_gib(2 * parts * sum(need.weights for need in needs.values()) + 2 * GIB)


def quantity(nbytes: int) -> str:
    """Bytes as Kubernetes writes them."""
    return f"{nbytes // GIB}Gi" if nbytes % GIB == 0 else f"{math.ceil(nbytes / MIB)}Mi"


def quantity_bytes(text: str) -> int:
    """`16Gi` and the like in bytes."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return int(float(text[:-2]) * units[text[-2:]])


def _whole_gib(nbytes: float) -> int:
    return math.ceil(nbytes / GIB) * GIB
