"""Everything that is decided before a conversion writes: source, runtime, family, plan, key.

All of it takes milliseconds for a local folder; what cannot work is refused here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from builder import cache, families, hub
from builder.compat import check_architecture, choose_runtime, version_remark
from builder.engine_env import installed_version
from builder.gpus import Gpu, detect_gpus, gpu_by_name
from builder.inspect import Inspection, inspect, read_config
from builder.manifest import Layout, RuntimeTarget, Sizes
from builder.options import read_options
from builder.plan import Plan, StoredWeights, make_plan, window_remark
from builder.prequantized import PreQuantized, find_quantization
from builder.quantization import SAME_AS, SCHEMES, check_calibration, check_quantization
from builder.request import ConvertRequest, Progress
from builder.shape import shape_of
from builder.shard import ShardPlan
from builder.sources import Source
from common.errors import CheckpointError, ResourceError


@dataclass(frozen=True)
class Prepared:
    """A request with everything found out about it."""

    request: ConvertRequest
    source: hub.SourceFolder
    inspection: Inspection
    target: RuntimeTarget
    layout: families.Layout
    plan: Plan
    config: dict[str, Any]
    writes_checkpoint: bool
    options: dict[str, list[str]]
    key: str

    @property
    def sizes(self) -> Sizes:
        return sizes_of(self.request)

    @property
    def manifest_layout(self) -> Layout:
        return layout_of(self.request)


def sizes_of(request: ConvertRequest) -> Sizes:
    return Sizes(
        max_batch_size=request.max_batch_size,
        max_input_len=request.max_input_len,
        max_output_len=request.max_output_len,
    )


def layout_of(request: ConvertRequest) -> Layout:
    return Layout(dtype=request.dtype, tp_size=request.tp_size, pp_size=request.pp_size)


def prepare(request: ConvertRequest, report: Progress) -> Prepared:
    """Find, inspect and plan. Raises what `hub`, `inspect`, `families` and the plan refuse."""
    needs_weights = request.stage != "plan"
    source = hub.find_source(
        request.model,
        revision=request.revision,
        weights=needs_weights,
        allow_pickle=request.allow_pickle,
        on_download=lambda: report("downloading", 0, 0),
    )
    target = _checked_target(request, source.folder)
    convertible = request.stage == "checkpoint" or target.era == "engine"
    inspection = inspect(
        source.folder,
        model_type=request.model_type,
        allow_pickle=request.allow_pickle,
        convertible=convertible,
        need_weights=needs_weights,
    )
    if request.stage != "checkpoint":
        check_architecture(inspection.architecture, target.era)
    layout = _checkpoint_layout(request)
    config = _trtllm_config(inspection, layout, request, convertible)
    writes = convertible and request.quantization is None
    if writes and needs_weights:
        ShardPlan(Source(source.folder, allow_pickle=request.allow_pickle), config, layout)
    plan = _plan(request, config, target, inspection)
    _refuse_misfit(plan, request)
    key = _key(inspection, layout, request, "none" if writes else target.era)
    options = read_options(request.extra, target, request.own_options)
    return Prepared(request, source, inspection, target, layout, plan, config, writes, options, key)


def _checked_target(request: ConvertRequest, folder: Path) -> RuntimeTarget:
    """The runtime, after everything that is asked about quantization was found possible."""
    quantized = find_quantization(folder, read_config(folder))
    target = _target(request, quantized)
    check_quantization(request.quantization, target, quantized)
    check_calibration(request.calibration)
    return target


def _checkpoint_layout(request: ConvertRequest) -> families.Layout:
    return families.Layout(
        dtype=request.dtype,
        tp_size=request.tp_size,
        pp_size=request.pp_size,
        moe_tp_size=request.moe_tp_size,
        moe_ep_size=request.moe_ep_size,
        use_parallel_embedding=request.use_parallel_embedding,
        embedding_sharding_dim=request.embedding_sharding_dim,
    )


def _target(request: ConvertRequest, quantized: PreQuantized | None) -> RuntimeTarget:
    """The runtime that is asked for; weights that are already quantized go to the PyTorch one."""
    if quantized is None or request.runtime != "auto":
        return choose_runtime(request.runtime, request.trtllm_version, installed_version())
    target = choose_runtime("pytorch", request.trtllm_version, installed_version())
    why = f"the weights are already quantized ({quantized.algorithm}: {quantized.reason})"
    return target.model_copy(update={"reason": f"{why}; the PyTorch runtime loads them as they are"})


def _trtllm_config(
    inspection: Inspection, layout: families.Layout, request: ConvertRequest, convertible: bool
) -> dict[str, Any]:
    """The TRT-LLM config; for models that only the PyTorch runtime loads, their own with the same names."""
    try:
        return families.trtllm_config(inspection.config, layout, request.model_type)
    except CheckpointError:
        if convertible:
            raise
    return inspection.config


def _plan(
    request: ConvertRequest, config: dict[str, Any], target: RuntimeTarget, inspection: Inspection
) -> Plan:
    plan = make_plan(
        shape_of(config),
        layout_of(request),
        sizes_of(request),
        target,
        architecture=inspection.architecture,
        gpu=choose_gpu(request),
        stored=_stored(request, config, inspection),
    )
    window = window_remark(inspection.config, sizes_of(request))
    return replace(plan, remarks=(*plan.remarks, *window, *version_remark(target.tensorrt_llm)))


def choose_gpu(request: ConvertRequest) -> Gpu | None:
    """The GPU to plan for: named, given by its memory, or the first one here if an engine is wanted."""
    if request.gpu is not None:
        gpu = gpu_by_name(request.gpu, or_memory=True)
        return Gpu(gpu.name, request.gpu_memory or gpu.memory, gpu.capability)
    if request.gpu_memory is not None:
        return Gpu(f"a GPU with {request.gpu_memory / 2**30:.1f} GiB", request.gpu_memory)
    return None if request.stage == "checkpoint" else next(iter(detect_gpus()), None)


def _refuse_misfit(plan: Plan, request: ConvertRequest) -> None:
    """Stop before gigabytes move; `--stage plan` shows the problems instead."""
    if plan.fits or request.stage == "plan":
        return
    raise ResourceError(
        f"{request.model} cannot be served as asked.",
        why=" ".join(plan.problems),
        hint=f"For every figure run: ./ew plan --model {request.model}. Another split or length may fit.",
        code="plan_does_not_fit",
    )


def _key(inspection: Inspection, layout: families.Layout, request: ConvertRequest, instead: str) -> str:
    """Content address of a package; `instead` is the era that needs no checkpoint of ours, or none."""
    return cache.content_key(
        format=cache.CHECKPOINT_FORMAT,
        instead=instead,
        source=inspection.digest,
        layout=asdict(layout),
        model_type=request.model_type,
        family=inspection.family,
        quantization=request.quantization,
    )


def _stored(request: ConvertRequest, config: dict[str, Any], inspection: Inspection) -> StoredWeights:
    """Scheme, KV cache and size of weights that are quantized, to be quantized, or loaded as they are."""
    if request.quantization:
        return StoredWeights(request.quantization, SCHEMES[request.quantization])
    found = inspection.quantization
    as_is = bool(inspection.weights) and (found is not None or config is inspection.config)
    return StoredWeights(
        scheme=SAME_AS.get(found.algorithm) if found else None,
        kv_dtype="fp8" if found and found.kv_cache == "FP8" else None,
        nbytes=inspection.weight_bytes if as_is else None,
    )
