"""Which NGC image serves an engine."""

from __future__ import annotations

from dataclasses import dataclass

from builder.compat import container_for, containers, era_of
from builder.gate import same_version
from common.errors import EnvironmentProblem
from runtime.environments.releases import vllm_containers
from runtime.launchers.gate import Runtime
from runtime.launchers.request import LaunchRequest


@dataclass(frozen=True)
class Image:
    """An image and what is inside, as far as it is known."""

    tag: str
    runtime: Runtime


def choose_image(request: LaunchRequest) -> Image:
    """The image asked for, else the newest that has the models' versions.

    Raises:
        EnvironmentProblem: no Triton image has that TensorRT-LLM, or the engine has no image.
    """
    if request.image:
        return _known(request.image) or Image(request.image, Runtime(request.image))
    if request.engine == "cuda-vllm":
        newest = vllm_containers()[0]
        return Image(newest.tag, Runtime(newest.tag, cuda=newest.cuda, driver=newest.driver))
    if request.engine == "cuda-trt":
        return _tensorrt_llm_image(request)
    raise EnvironmentProblem(
        f"There is no container for the engine {request.engine}.",
        hint="Use --launcher pytriton.",
        code="no_image",
    )


def _tensorrt_llm_image(request: LaunchRequest) -> Image:
    wanted = next((model.tensorrt_llm for model in request.models if model.tensorrt_llm), None)
    row = containers()[0] if wanted is None else container_for(wanted)
    if row is None and wanted is not None:
        row = next((row for row in containers() if same_version(row.tensorrt_llm, wanted)), None)
    if row is None:
        raise _no_image(str(wanted))
    return Image(row.tag, Runtime(row.tag, row.tensorrt_llm, row.cuda, row.driver))


def _no_image(version: str) -> EnvironmentProblem:
    if era_of(version) == "pytorch":
        hint = (
            f"Install it: ./ew setup --engine cuda-trt --version {version}, then start with --launcher "
            "pytriton; or name an image with --image."
        )
    else:
        known = ", ".join(dict.fromkeys(row.tensorrt_llm for row in containers()[:12]))
        hint = f"Build the engine with a version that has one ({known}), or name an image with --image."
    return EnvironmentProblem(
        f"No Triton container has TensorRT-LLM {version}.",
        why="TensorRT-LLM 1.3 and later are not in Triton's containers."
        if era_of(version) == "pytorch"
        else "",
        hint=hint,
        code="no_image",
    )


def _known(tag: str) -> Image | None:
    for row in containers():
        if row.tag == tag:
            return Image(tag, Runtime(tag, row.tensorrt_llm, row.cuda, row.driver))
    for other in vllm_containers():
        if other.tag == tag:
            return Image(tag, Runtime(tag, cuda=other.cuda, driver=other.driver))
    return None
