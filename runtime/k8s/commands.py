"""The ew command lines that containers run; each is what a person would type in the image."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from common.config import DeployConfig, ModelConfig
from runtime import teardown
from runtime.k8s import sizing
from runtime.k8s.pool import Pool
from runtime.k8s.sizing import ModelNeeds
from runtime.k8s.values import Values

IMAGE_START_SECONDS = 60  # the container itself, ew's own start, stopping what does not get ready
GRACE_MARGIN_SECONDS = 5
RETRY_SECONDS = 15


@dataclass(frozen=True)
class Lifetime:
    """Seconds: `timeout` to get ready in, `startup` before the cluster gives up, `grace` to end in."""

    load: int
    timeout: int
    startup: int
    pre_stop: int
    drain: float
    grace: int


def lifetime(needs: Mapping[str, ModelNeeds], values: Values, pool: Pool) -> Lifetime:
    load = sizing.load_seconds(needs, values, pool.era, pool.gpus)
    timeout = math.ceil(load * sizing.SAFETY / 30) * 30
    stop = teardown.longest_stop_seconds(values.drain_seconds)
    grace = math.ceil(values.pre_stop_seconds + stop + GRACE_MARGIN_SECONDS)
    startup = timeout + IMAGE_START_SECONDS
    return Lifetime(load, timeout, startup, values.pre_stop_seconds, values.drain_seconds, grace)


def start_arguments(config: DeployConfig, values: Values, life: Lifetime) -> list[str]:
    engine = next(iter(config.models.values())).engine
    return [
        *("start", "--foreground", "--engine", engine),
        *(part for model_id in config.models for part in ("--model", model_id)),
        *("--host", values.host, "--port", "8080"),
        *("--timeout", str(life.timeout), "--drain", f"{life.drain:g}"),
        *("--lame-duck", f"{values.lame_duck_seconds:g}"),
    ]


def convert_arguments(
    model: ModelConfig, need: ModelNeeds, pool: Pool, values: Values, output: str
) -> list[str]:
    """`ew convert-trt`, which goes on where an interrupted job stopped, and does nothing the second time."""
    stage = "checkpoint" if pool.era == "cpu" else "engine"
    arguments = [
        *("convert-trt", "--model", need.source, "--output", output, "--stage", stage),
        *("--dtype", model.dtype),
        *("--tp-size", str(model.tensor_parallel_size), "--pp-size", str(model.pipeline_parallel_size)),
        *("--max-batch-size", str(model.max_batch_size)),
        *("--max-input-len", str(model.max_input_len), "--max-output-len", str(model.max_output_len)),
    ]
    if pool.era != "cpu":
        arguments += ["--runtime", pool.era, "--gpu", pool.gpu]
        arguments += ["--trtllm-version", pool.container.tensorrt_llm]
    return [*arguments, *shlex.split(values.convert_options)]


def package_path(model_id: str, arguments: list[str], pool: Pool) -> str:
    """Where a package belongs: an engine for another GPU, version or size is another folder."""
    digest = hashlib.sha256(shlex.join(arguments).encode()).hexdigest()[:8]
    return f"models/{model_id}/{pool.key}-{digest}"


def wait_script(paths: Mapping[str, str], pool: Pool) -> str:
    """Waits until every package is there and loads in this image; says meanwhile what is missing."""
    checks = [shlex.join(["ew", *check_arguments(path, pool)]) for path in paths.values()]
    return "\n".join(f"until {check}; do sleep {RETRY_SECONDS}; done" for check in checks)


def check_arguments(path: str, pool: Pool) -> list[str]:
    if pool.era != "engine":
        return ["package", "show", path]
    versions = ["--trtllm-version", pool.container.tensorrt_llm, "--gpu", pool.gpu]
    return ["package", "check", path, *versions]
