"""The arithmetic of the plan, against published logs, golden checkpoints and its own bounds."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.compat import choose_runtime
from builder.gpus import GIB, Gpu, gpu_by_name, parse_bytes
from builder.manifest import Layout, Sizes
from builder.plan import Plan, StoredWeights, make_plan, rank_sizes, recommended_batch
from builder.shape import ModelShape, shape_of
from common.errors import CheckpointError, UsageError
from tests.builder.golden import CASES, Case

STORED_BYTES = {"F16": 2, "BF16": 2, "F32": 4}
TARGET = choose_runtime("auto", None, None)
QWEN_0_5B = ModelShape(24, 896, 14, 2, 64, 4864, 151936, 32768, qkv_bias=True)
LLAMA_8B = ModelShape(32, 4096, 32, 8, 128, 14336, 128256, 131072)


def plan(shape: ModelShape, *, gpu: Gpu | None = None, sizes: Sizes | None = None, **layout: Any) -> Plan:
    cut = Layout.model_validate({"dtype": "float16", "tp_size": 1, "pp_size": 1} | layout)
    default = Sizes(max_batch_size=64, max_input_len=4096, max_output_len=2048)
    return make_plan(shape, cut, sizes or default, TARGET, gpu=gpu)


def test_kv_cache_of_a_published_log() -> None:
    """TensorRT-LLM's log of Qwen2.5-0.5B: 395,776 tokens of KV cache take 4.53 GiB."""
    each = plan(QWEN_0_5B)["kv_bytes_per_token"]
    assert each == 12_288
    assert round(395_776 * 12_288 / GIB, 2) == 4.53


def test_weights_of_a_published_model() -> None:
    """Llama 3.1 8B has 8,030,261,248 parameters."""
    assert sum(rank_sizes(LLAMA_8B, Layout(dtype="bfloat16", tp_size=1, pp_size=1))) == 2 * 8_030_261_248


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rank_bytes_equal_the_golden_files(case: Case) -> None:
    config = case.config
    mapping = config["mapping"]
    layout = Layout(dtype=config["dtype"], tp_size=mapping["tp_size"], pp_size=mapping["pp_size"])
    written = [
        sum(STORED_BYTES[dtype] * math.prod(shape) for dtype, shape, _ in tensors.values())
        for tensors in case.tensors.values()
    ]
    assert rank_sizes(shape_of(config), layout) == written


@pytest.mark.parametrize(
    ("memory", "fitting", "expected"),
    [
        (8 * GIB, 500, 32),
        (8 * GIB, 20, 20),
        (parse_bytes("12282MiB"), 500, 64),
        (16 * GIB, 40, 40),
        (24 * GIB, 500, 64),
        (80 * GIB, 500, 128),
        (80 * GIB, 100, 100),
        (80 * GIB, 3, 3),
        (80 * GIB, 0, 1),
    ],
)
def test_recommended_batch_follows_the_bands(memory: int, fitting: int, expected: int) -> None:
    assert recommended_batch(memory, fitting)[0] == expected


def test_every_figure_has_a_reason() -> None:
    made = plan(LLAMA_8B, gpu=gpu_by_name("L40S"), tp_size=2)
    assert all(figure.reason for figure in made.figures)
    assert json.loads(json.dumps(made.as_dict()))["fits"] is True


def test_too_small_a_gpu_is_a_problem() -> None:
    made = plan(LLAMA_8B, gpu=Gpu("a GPU", 12 * GIB))
    assert not made.fits
    assert "exceed" in made.problems[0]


def test_request_longer_than_the_kv_cache_is_a_problem() -> None:
    sizes = Sizes(max_batch_size=1, max_input_len=130_000, max_output_len=100_000)
    made = plan(LLAMA_8B, gpu=gpu_by_name("RTX 4090"), sizes=sizes)
    assert any("one request may have 230000" in problem for problem in made.problems)
    assert any("131072 positions" in remark for remark in made.remarks)


@pytest.mark.parametrize(
    ("dtype", "gpu", "fits"),
    [
        ("bfloat16", "T4", False),
        ("float16", "T4", True),
        ("bfloat16", "A10", True),
        ("float16", "V100", False),
    ],
)
def test_number_types_by_generation(dtype: str, gpu: str, fits: bool) -> None:
    assert plan(QWEN_0_5B, gpu=gpu_by_name(gpu), dtype=dtype).fits is fits


@pytest.mark.parametrize(
    ("name", "quantization", "fits"),
    [
        ("A100", "fp8", False),
        ("L40S", "fp8", True),
        ("H100", "nvfp4", False),
        ("B200", "nvfp4", True),
        ("B200", "int8_sq", False),
        ("H100", "int8_sq", True),
    ],
)
def test_quantization_by_generation(name: str, quantization: str, fits: bool) -> None:
    layout = Layout(dtype="float16", tp_size=1, pp_size=1)
    sizes = Sizes(max_batch_size=1, max_input_len=64, max_output_len=64)
    made = make_plan(
        QWEN_0_5B, layout, sizes, TARGET, gpu=gpu_by_name(name), stored=StoredWeights(quantization)
    )
    assert made.fits is fits


@given(tp=st.sampled_from([1, 2, 4, 8]), pp=st.integers(1, 4), memory=st.integers(1, 640))
def test_more_memory_never_fits_less(tp: int, pp: int, memory: int) -> None:
    def tokens(size: int) -> int:
        return int(plan(LLAMA_8B, gpu=Gpu("a GPU", size * GIB), tp_size=tp, pp_size=pp)["kv_cache_tokens"])

    assert tokens(memory) <= tokens(memory + 1)


@given(tp=st.sampled_from([1, 2, 4, 8, 16, 32]), pp=st.integers(1, 32))
def test_ranks_hold_at_least_the_whole_model(tp: int, pp: int) -> None:
    whole = sum(rank_sizes(LLAMA_8B, Layout(dtype="float16", tp_size=1, pp_size=1)))
    assert sum(rank_sizes(LLAMA_8B, Layout(dtype="float16", tp_size=tp, pp_size=pp))) >= whole


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * GIB),
        ("24G", 24 * GIB),
        ("80GB", 80 * 10**9),
        ("1.5 gib", 3 * GIB // 2),
        ("85899345920", 80 * GIB),
    ],
)
def test_sizes_with_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24 apples", "-1GiB", "0", "GiB", "80", "24 KiB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("l40s", "L40S"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("Tesla T4", "T4"), ("a100", "A100-80GB")],
)
def test_gpu_names_as_people_write_them(name: str, expected: str) -> None:
    assert gpu_by_name(name).name == expected


def test_config_without_sizes_is_an_expected_error() -> None:
    with pytest.raises(CheckpointError, match="hidden_size"):
        shape_of({"intermediate_size": 8, "num_attention_heads": 2})


def test_fp8_cache_holds_twice_the_tokens() -> None:
    layout = Layout(dtype="float16", tp_size=1, pp_size=1)
    sizes = Sizes(max_batch_size=1, max_input_len=64, max_output_len=64)
    made = make_plan(QWEN_0_5B, layout, sizes, TARGET, stored=StoredWeights("fp8", "fp8"))
    assert made["kv_bytes_per_token"] == 6_144
