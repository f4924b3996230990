"""Plan before bytes: what a model needs, what fits a GPU, and what to set. Pure arithmetic.

Memory of one GPU = weights of its rank + activations + runtime reserve + KV cache. TensorRT-LLM gives
the KV cache a fraction of what the first three leave (0.9 by default).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from builder.data import load
from builder.gpus import GIB, Gpu, number_type_problem
from builder.manifest import Layout, RuntimeTarget, Sizes
from builder.shape import DTYPE_BYTES, ModelShape

KV_FRACTION = 0.9
CUDA_RESERVE = 1 * GIB
NCCL_RESERVE = GIB // 2
MAX_NUM_TOKENS = 8192
LOGITS_BYTES = 4
CONVERT_MEMORY = 1 * GIB
WEIGHT_BYTES = {"fp8": 1.0, "int8_sq": 1.0, "int4_awq": 0.53, "w4a8_awq": 0.53, "nvfp4": 0.5625}
ERAS = {"engine": "engines up to 1.2.1", "pytorch": "the newest PyTorch runtime"}
# cards sold as 12 and 24 GB report a little less or more; the limits, in GiB, allow for that
BANDS = ((11.5, (16, 32)), (24.5, (32, 64)))
LARGEST_BAND = (64, 128)


@dataclass(frozen=True)
class Figure:
    """One number of the plan with its unit and the arithmetic behind it."""

    name: str
    value: int | float | str
    unit: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The figures in the order they are shown, problems that stop the plan, and remarks that do not."""

    figures: tuple[Figure, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    def __getitem__(self, name: str) -> int | float | str:
        return next(figure.value for figure in self.figures if figure.name == name)

    def get(self, name: str) -> int | float | str | None:
        return next((figure.value for figure in self.figures if figure.name == name), None)

    @property
    def fits(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {
            "fits": self.fits,
            "figures": [asdict(figure) for figure in self.figures],
            "problems": list(self.problems),
            "remarks": list(self.remarks),
        }

    def summary(self) -> dict[str, Any]:
        """The bare numbers, for the manifest."""
        return {figure.name: figure.value for figure in self.figures}


@dataclass(frozen=True)
class StoredWeights:
    """How weights and KV cache are stored when not in the layout's dtype.

    Args:
        scheme: a --quantization name.
        kv_dtype: of the KV cache.
        nbytes: of all weight files, for models that are loaded as they are.
    """

    scheme: str | None = None
    kv_dtype: str | None = None
    nbytes: int | None = None


AS_IT_IS = StoredWeights()


def make_plan(
    shape: ModelShape,
    layout: Layout,
    sizes: Sizes,
    target: RuntimeTarget,
    *,
    architecture: str = "",
    gpu: Gpu | None = None,
    stored: StoredWeights = AS_IT_IS,
) -> Plan:
    """Work out what `shape` needs under `layout`, and with a GPU also what fits it."""
    kv_dtype = stored.kv_dtype or layout.dtype
    figures = [_weights_per_rank(shape, layout, stored), _kv_figure(shape, layout, kv_dtype)]
    figures += _working_figures(shape, layout, sizes)
    problems, remarks = _shape_problems(shape, layout, sizes)
    if gpu is not None:
        problems += _gpu_problems(gpu, layout.dtype, stored.scheme)
        fit = _fit(gpu, {figure.name: figure.value for figure in figures}, sizes)
        figures += fit
        problems += _memory_problems(gpu, fit, sizes)
        remarks += _batch_remarks(fit, sizes)
    figures += _host_figures(shape, layout)
    figures += _runtime_figures(architecture, target)
    return Plan(tuple(figures), tuple(problems), tuple(remarks))


def _weights_per_rank(shape: ModelShape, layout: Layout, stored: StoredWeights) -> Figure:
    ranks = f"{layout.world_size} ranks, tp {layout.tp_size} pp {layout.pp_size}"
    if stored.nbytes is not None:
        each_rank = math.ceil(stored.nbytes / layout.world_size)
        return Figure("weights_per_rank", each_rank, "bytes", f"size of the weight files shared by {ranks}")
    largest = max(rank_sizes(shape, layout))
    reason = f"largest of {ranks}, in {layout.dtype}"
    if stored.scheme:
        each = WEIGHT_BYTES[stored.scheme]
        largest = int(largest * each / DTYPE_BYTES[layout.dtype])
        reason = f"{reason}, stored as {stored.scheme} ({each} bytes a weight)"
    return Figure("weights_per_rank", largest, "bytes", reason)


def _kv_figure(shape: ModelShape, layout: Layout, kv_dtype: str) -> Figure:
    each = DTYPE_BYTES[kv_dtype]
    layers, heads = shape.layers_per_stage(layout.pp_size), shape.kv_heads_per_rank(layout.tp_size)
    reason = f"{layers} layers x {heads} KV heads x {shape.head_size} x 2 (K, V) x {each} bytes, per rank"
    value = shape.kv_bytes_per_token(each, tp_size=layout.tp_size, pp_size=layout.pp_size)
    return Figure("kv_bytes_per_token", value, "bytes", reason)


def _working_figures(shape: ModelShape, layout: Layout, sizes: Sizes) -> list[Figure]:
    each = DTYPE_BYTES[layout.dtype]
    width = 2 * (shape.moe_intermediate or shape.intermediate) // layout.tp_size + 4 * shape.hidden
    logits = sizes.max_batch_size * shape.vocab * LOGITS_BYTES
    activations = MAX_NUM_TOKENS * width * each + logits
    reserve = CUDA_RESERVE + (NCCL_RESERVE if layout.world_size > 1 else 0)
    return [
        Figure(
            "activations", activations, "bytes",
            f"{MAX_NUM_TOKENS} tokens in one step x (2 x MLP width / tp + 4 x hidden) x {each} bytes"
            f" + float32 logits of {sizes.max_batch_size} requests",
        ),
        Figure(
            "runtime_reserve", reserve, "bytes",
            "CUDA context and TensorRT runtime 1 GiB" + (", NCCL 0.5 GiB" if layout.world_size > 1 else ""),
        ),
    ]  # fmt: skip


def _fit(gpu: Gpu, values: dict[str, Any], sizes: Sizes) -> list[Figure]:
    left = gpu.memory - values["weights_per_rank"] - values["activations"] - values["runtime_reserve"]
    pool = max(0, int(left * KV_FRACTION))
    tokens = pool // values["kv_bytes_per_token"]
    whole = tokens // sizes.max_seq_len
    batch, reason = recommended_batch(gpu.memory, whole)
    return [
        Figure("gpu_memory", gpu.memory, "bytes", gpu.name),
        Figure(
            "kv_cache", pool, "bytes",
            f"{KV_FRACTION} of what weights, activations and reserve leave (kv_cache_free_gpu_mem_fraction)",
        ),
        Figure("kv_cache_tokens", tokens, "tokens", "KV cache / bytes per token"),
        Figure(
            "full_length_requests", whole, "requests",
            f"KV cache tokens / {sizes.max_seq_len} (max_input_len + max_output_len)",
        ),
        Figure(
            "longest_single_request", tokens, "tokens", "one request may use the whole KV cache",
        ),
        Figure("recommended_max_batch_size", batch, "requests", reason),
    ]  # fmt: skip


def recommended_batch(gpu_memory: int, full_length_requests: int) -> tuple[int, str]:
    """max_batch_size for a GPU: the band of its memory, moved by how many whole requests fit."""
    low, high = next((band for limit, band in BANDS if gpu_memory < limit * GIB), LARGEST_BAND)
    band = f"band for {gpu_memory / GIB:.0f} GiB: {low} to {high}"
    if full_length_requests >= high:
        return high, f"{band}; {full_length_requests} requests of full length fit, so its upper end"
    if full_length_requests >= low:
        return full_length_requests, f"{band}; that many requests of full length fit"
    fit = max(1, full_length_requests)
    return fit, f"below the {band}: only {full_length_requests} requests of full length fit the KV cache"


def _host_figures(shape: ModelShape, layout: Layout) -> list[Figure]:
    ranks = rank_sizes(shape, layout)
    return [
        Figure("checkpoint_bytes", sum(ranks), "bytes", f"{len(ranks)} rank files of the TRT-LLM checkpoint"),
        Figure(
            "engine_disk_bytes", sum(ranks), "bytes", "an engine is about as large as its checkpoint"
        ),
        Figure("convert_host_memory", CONVERT_MEMORY, "bytes", "tensors are streamed; bounded for any model"),
        Figure(
            "build_host_memory", 2 * max(ranks) + 4 * GIB, "bytes",
            "trtllm-build loads one rank and serializes it once more; about 4 GiB of libraries",
        ),
    ]  # fmt: skip


def rank_sizes(shape: ModelShape, layout: Layout) -> list[int]:
    """Bytes of each rank file's tensors, in rank order."""
    each = DTYPE_BYTES[layout.dtype]
    return [
        shape.rank_bytes(stage, bytes_each=each, tp_size=layout.tp_size, pp_size=layout.pp_size)
        for stage in range(layout.pp_size)
        for _ in range(layout.tp_size)
    ]


def _shape_problems(shape: ModelShape, layout: Layout, sizes: Sizes) -> tuple[list[str], list[str]]:
    problems, remarks = [], []
    tp = layout.tp_size
    if shape.heads % tp:
        problems.append(f"{shape.heads} attention heads cannot be divided by tp_size {tp}.")
    if shape.kv_heads % tp and tp % shape.kv_heads:
        problems.append(f"{shape.kv_heads} KV heads and tp_size {tp}: neither divides the other.")
    inner = shape.moe_intermediate or shape.intermediate
    if inner % tp:
        problems.append(f"MLP width {inner} cannot be divided by tp_size {tp}.")
    if layout.pp_size > shape.layers:
        problems.append(f"{shape.layers} layers cannot fill {layout.pp_size} pipeline stages.")
    if shape.kv_heads < tp and not tp % shape.kv_heads:
        remarks.append(
            f"{shape.kv_heads} KV heads on {tp} ranks: each is stored {tp // shape.kv_heads} times."
        )
    if shape.max_positions and sizes.max_seq_len > shape.max_positions:
        remarks.append(
            f"max_input_len + max_output_len is {sizes.max_seq_len}, but the model was trained for"
            f" {shape.max_positions} positions; longer requests may answer badly."
        )
    return problems, remarks


def _gpu_problems(gpu: Gpu, dtype: str, quantization: str | None) -> list[str]:
    kinds = [dtype, *([quantization] if quantization else [])]
    found = (number_type_problem(kind, gpu) for kind in kinds)
    return [problem for problem in dict.fromkeys(found) if problem]


def _memory_problems(gpu: Gpu, fit: list[Figure], sizes: Sizes) -> list[str]:
    values = {figure.name: figure.value for figure in fit}
    if not values["kv_cache"]:
        return [
            f"Weights, activations and reserve alone exceed the {gpu.memory / GIB:.1f} GiB of {gpu.name}."
        ]
    if not values["full_length_requests"]:
        return [
            f"The KV cache holds {values['kv_cache_tokens']} tokens, but one request may have"
            f" {sizes.max_seq_len}: lower --max-input-len or --max-output-len, or raise --tp-size."
        ]
    return []


def _batch_remarks(fit: list[Figure], sizes: Sizes) -> list[str]:
    recommended = next(figure.value for figure in fit if figure.name == "recommended_max_batch_size")
    if not isinstance(recommended, int) or sizes.max_batch_size <= recommended:
        return []
    return [
        f"max_batch_size {sizes.max_batch_size} is above the recommended {recommended}:"
        " when all requests are long, some wait or are paused for KV cache."
    ]


def window_remark(hf_config: Mapping[str, Any], sizes: Sizes) -> list[str]:
    """What to set for a model with a sliding window, which no TRT-LLM checkpoint carries."""
    window = hf_config.get("sliding_window")
    is_used = hf_config.get("use_sliding_window", not str(hf_config.get("model_type")).startswith("qwen"))
    if not is_used or not isinstance(window, int) or window >= sizes.max_seq_len:
        return []
    return [
        f"The model attends to the last {window} tokens only (sliding_window), which no TRT-LLM checkpoint"
        f' carries: set "triton": {{"max_attention_window_size": "{window}"}} in deploy/config.json,'
        f" or answers beyond {window} tokens differ from the original model's."
    ]


def _runtime_figures(architecture: str, target: RuntimeTarget) -> list[Figure]:
    era = Figure("era", target.era, "", f"TensorRT-LLM {target.tensorrt_llm}: {target.reason}")
    if not architecture:
        return [era]
    found = [name for name in ERAS if architecture in load("model_map")[name]]
    reason = (
        f"TensorRT-LLM lists {architecture} for {' and '.join(ERAS[name] for name in found) or 'nothing'}"
    )
    return [era, Figure("supported_by", ", ".join(found) or "none", "", reason)]
