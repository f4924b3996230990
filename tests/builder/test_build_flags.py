"""Options passed through to trtllm-build and tensorrt_llm.LLM."""

from __future__ import annotations

import pytest

from builder.build_flags import build_arguments, effective_options, flags, parse_build_options
from builder.llm_args import check_llm_options, contract, make_llm_args, parse_llm_options
from builder.manifest import Layout, Sizes
from common.errors import UsageError

LAYOUT = Layout(dtype="float16", tp_size=2, pp_size=1)
SIZES = Sizes(max_batch_size=8, max_input_len=100, max_output_len=28)


def test_values_switches_and_lists() -> None:
    arguments = [
        "--gemm-plugin=auto",
        "--fast_build",
        "--lora_target_modules",
        "attn_q",
        "attn_v",
        "--",
        "--max_lora_rank",
        "8",
    ]
    assert parse_build_options(arguments) == {
        "gemm_plugin": ["auto"],
        "fast_build": [],
        "lora_target_modules": ["attn_q", "attn_v"],
        "max_lora_rank": ["8"],
    }


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--gemm_plugin"], "bad_option_value"),
        (["--fast_build=yes"], "bad_option_value"),
        (["--max_beam_width", "two"], "bad_option_value"),
        (["--lora_target_modules", "attn_z"], "bad_option_value"),
        (["--streamingllm", "enable"], "bad_option_value"),
        (["--max_output_len", "5"], "removed_option"),
        (["--checkpoint_dir", "x"], "owned_option"),
        (["--nonsense", "1"], "unknown_option"),
        (["stray"], "bad_option"),
    ],
)
def test_refused_build_options(arguments: list[str], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_build_options(arguments)
    assert caught.value.code == code


def test_every_option_on_the_command_line_is_in_the_contract() -> None:
    options = effective_options({"max_num_tokens": ["4096"]}, quantized=False)
    arguments = build_arguments("/checkpoint", "/engine", LAYOUT, SIZES, options, gpus=0)
    names = [argument.removeprefix("--") for argument in arguments if argument.startswith("--")]
    assert set(names) <= set(flags())
    assert len(names) == len(set(names))
    assert arguments[arguments.index("--workers") + 1] == "1"
    assert arguments[arguments.index("--max_num_tokens") + 1] == "4096"


@pytest.mark.parametrize("version", ["1.2.1", "1.4.0rc1"])
def test_llm_arguments_are_all_known_to_the_version(version: str) -> None:
    arguments = make_llm_args("org/model", "abc", LAYOUT, SIZES, {"kv_cache_config": {"dtype": "fp8"}})
    known = contract(version)
    assert set(arguments) <= set(known["names"])
    assert set(arguments["kv_cache_config"]) <= set(known["kv_cache_config"])
    assert arguments["max_seq_len"] == 128
    assert arguments["kv_cache_config"]["dtype"] == "fp8"


def test_llm_options_reach_into_parts() -> None:
    arguments = [
        "--kv_cache_config.free_gpu_memory_fraction",
        "0.8",
        "--enable-chunked-prefill",
        "--attn_backend=TRTLLM",
    ]
    assert parse_llm_options(arguments, "1.2.1") == {
        "kv_cache_config": {"free_gpu_memory_fraction": 0.8},
        "enable_chunked_prefill": True,
        "attn_backend": "TRTLLM",
    }


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"max_batch_size": 4}, "owned_option"),
        ({"trust_remote_code": True}, "refused_option"),
        ({"stream_intervall": 4}, "unknown_option"),
        ({"stream_interval": "four"}, "bad_option_value"),
        ({"stream_interval": True}, "bad_option_value"),
        ({"guided_decoding_backend": "outlines"}, "bad_option_value"),
        ({"kv_cache_config": {"max_token": 4}}, "unknown_option"),
    ],
)
def test_refused_llm_options(options: dict[str, object], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_llm_options(options, "1.2.1")
    assert caught.value.code == code


def test_names_follow_the_version() -> None:
    check_llm_options({"telemetry_config": {}}, "1.4.0rc1")
    with pytest.raises(UsageError):
        check_llm_options({"telemetry_config": {}}, "1.2.1")
