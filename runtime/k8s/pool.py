"""Which overlay a config calls for, its engine era, its image, and the GPUs of its pods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from builder.compat import Container, containers, newest_container
from builder.gpus import gpu_by_name
from builder.package import load_package
from common.config import DeployConfig, ModelConfig
from common.errors import PackageError, UsageError
from common.paths import home
from common.version import VERSION
from runtime.k8s.values import Values

OVERLAYS = {
    "cpu": "The embedded engine; any node.",
    "single-gpu": "TensorRT-LLM engines, one GPU a copy.",
    "multi-gpu": "TensorRT-LLM engines over several GPUs of one node.",
    "multi-node": "TensorRT-LLM engines over several nodes (LeaderWorkerSet, MPI).",
    "pytorch": "Engines without a build: TensorRT-LLM's PyTorch runtime, vLLM.",
}
ERAS = {"cpu": "cpu", "pytorch": "pytorch"}
# What the GPU feature discovery calls the usual variant of each type.
PRODUCTS = {
    "T4": "Tesla-T4",
    "A10": "NVIDIA-A10",
    "A10G": "NVIDIA-A10G",
    "A30": "NVIDIA-A30",
    "A40": "NVIDIA-A40",
    "A100-40GB": "NVIDIA-A100-SXM4-40GB",
    "A100-80GB": "NVIDIA-A100-SXM4-80GB",
    "L4": "NVIDIA-L4",
    "L40": "NVIDIA-L40",
    "L40S": "NVIDIA-L40S",
    "H100": "NVIDIA-H100-80GB-HBM3",
    "H200": "NVIDIA-H200",
    "H20": "NVIDIA-H20",
    "B200": "NVIDIA-B200",
}


@dataclass(frozen=True)
class Pool:
    """The nodes a service is rendered for; `nodes` is how many one copy of it spans."""

    overlay: str
    era: str
    container: Container
    image: str
    gpu: str = ""
    gpu_product: str = ""
    gpus: int = 0
    nodes: int = 1

    @property
    def key(self) -> str:
        """What an engine is tied to: GPU type, runtime and version."""
        runtime = "pytorch" if self.era == "pytorch" else "trtllm"
        return (
            "cpu" if not self.gpu else f"{self.gpu}-{runtime}{self.container.tensorrt_llm}".replace(" ", "")
        )


def pool_of(config: DeployConfig, values: Values, overlay: str | None) -> Pool:
    """The nodes that the config calls for, or those of the overlay that is asked for.

    Raises:
        UsageError: no models, several engines at once, or an overlay that does not fit them.
    """
    models = config.models
    engines = {model.engine for model in models.values()}
    if len(engines) != 1:
        raise UsageError(
            "The config has no models." if not engines else f"The config has {len(engines)} engines.",
            hint="Render one deployment for each engine, from a config with its models only.",
            code="one_engine",
        )
    world = max(model.tensor_parallel_size * model.pipeline_parallel_size for model in models.values())
    chosen = overlay or _overlay_for(models, world, values)
    _check(chosen, next(iter(engines)), world, values)
    container = _container(values)
    if chosen == "cpu":
        return Pool("cpu", "cpu", container, values.image or f"ew:{VERSION}-cpu")
    gpu = _gpu(values)
    nodes = math.ceil(world / values.gpus_per_node) if chosen == "multi-node" else 1
    return Pool(
        chosen,
        ERAS.get(chosen, "engine"),
        container,
        values.image or _image(next(iter(engines)), container, nodes),
        gpu,
        _product(gpu, values),
        math.ceil(world / nodes),
        nodes,
    )


def _overlay_for(models: Mapping[str, ModelConfig], world: int, values: Values) -> str:
    first = next(iter(models.values()))
    if first.engine == "cpu":
        return "cpu"
    if first.engine != "cuda-trt" or any(_is_pytorch(model) for model in models.values()):
        return "pytorch"
    if world > values.gpus_per_node or any(model.triton.num_nodes > 1 for model in models.values()):
        return "multi-node"
    return "multi-gpu" if world > 1 else "single-gpu"


def _is_pytorch(model: ModelConfig) -> bool:
    try:
        return load_package(home().resolve(model.model_path)).manifest.runtime.era == "pytorch"
    except PackageError:
        return False


def _check(overlay: str, engine: str, world: int, values: Values) -> None:
    problem = ""
    if (overlay == "cpu") != (engine == "cpu"):
        problem = f"the models' engine is {engine}"
    elif overlay == "single-gpu" and world > 1:
        problem = f"a model needs {world} GPUs"
    elif overlay == "multi-gpu" and world == 1:
        problem = "every model needs one GPU only"
    elif overlay in ("multi-gpu", "pytorch") and world > values.gpus_per_node:
        problem = f"a model needs {world} GPUs and a node has {values.gpus_per_node}"
    elif overlay == "multi-node" and world <= values.gpus_per_node:
        problem = f"{world} GPUs fit one node of {values.gpus_per_node} (--set gpus_per_node)"
    elif overlay == "multi-node" and world % values.gpus_per_node:
        problem = f"{world} GPUs do not fill nodes of {values.gpus_per_node} (--set gpus_per_node)"
    elif overlay != "pytorch" and engine not in ("cpu", "cuda-trt"):
        problem = f"the models' engine is {engine}"
    if problem:
        raise UsageError(
            f"The overlay {overlay} does not fit: {problem}.",
            hint="Leave --overlay out to have it chosen by the config.",
            code="overlay_unfit",
        )


def _container(values: Values) -> Container:
    if values.triton is None:
        return newest_container()
    for row in containers():
        if row.triton == values.triton:
            return row
    raise UsageError(
        f"There is no Triton release {values.triton} with TensorRT-LLM.",
        hint=f"Known are {', '.join(row.triton for row in containers())}.",
        code="unknown_triton",
    )


def _image(engine: str, container: Container, nodes: int) -> str:
    if engine != "cuda-trt":
        raise UsageError(
            f"No image of ew has {engine} in it.",
            hint="Build Dockerfile.triton on a base that has, and name it: --set image=NAME:TAG",
            code="no_image",
        )
    return f"ew:{VERSION}-triton{container.triton}" + ("-multinode" if nodes > 1 else "")


def _gpu(values: Values) -> str:
    if values.gpu is None:
        raise UsageError(
            "The GPU type of the pool is not known.",
            hint="Name it, because engines are built for one type: --set gpu=L40S",
            code="no_gpu",
        )
    return gpu_by_name(values.gpu).name


def _product(gpu: str, values: Values) -> str:
    product = values.gpu_product or PRODUCTS.get(gpu)
    if product is None:
        raise UsageError(
            f"The node label of {gpu} is not known.",
            hint="See it with kubectl get nodes -L nvidia.com/gpu.product, then --set gpu_product=LABEL",
            code="no_gpu_product",
        )
    return product
