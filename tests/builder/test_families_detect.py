from __future__ import annotations

from typing import Any

import pytest

from builder.families import Layout, Rank, detect, trtllm_config
from builder.families.checks import check_layout, layout_problems
from builder.families.dims import Dims
from common.errors import CheckpointError, UnsupportedModelError, UsageError
from tests.builder.golden import CASES

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 96,
    "vocab_size": 100,
}
DIMS = Dims(hidden=64, layers=3, heads=8, kv_heads=2, head_size=8, intermediate=96, vocab=100)


def with_architecture(name: str, **more: Any) -> dict[str, Any]:
    return {**LLAMA, "architectures": [name], **more}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_golden_model_is_detected_with_a_reason(case: Any) -> None:
    found = detect(case.hf_config)
    assert case.hf_config["architectures"][0] in found.family.architectures
    assert "architectures[0]" in found.reason


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("LlamaForCausalLM", "yi"),
        ("LlamaForCausalLM", "llama"),
        ("MistralForCausalLM", "mistral"),
        ("Qwen2ForCausalLM", "qwen"),
        ("Qwen2ForCausalLM", "qwen2.5"),
        ("Qwen3ForCausalLM", "qwen3"),
        ("BaichuanForCausalLM", "baichuan"),
    ],
)
def test_model_type_may_agree(architecture: str, model_type: str) -> None:
    assert detect(with_architecture(architecture), model_type).family.architectures == BY_NAME[architecture]


BY_NAME = {
    "LlamaForCausalLM": ("LlamaForCausalLM",),
    "MistralForCausalLM": ("MistralForCausalLM",),
    "Qwen2ForCausalLM": ("Qwen2ForCausalLM",),
    "Qwen3ForCausalLM": ("Qwen3ForCausalLM",),
    "BaichuanForCausalLM": ("BaichuanForCausalLM", "BaiChuanForCausalLM"),
}


def test_model_type_that_contradicts_is_refused() -> None:
    with pytest.raises(UsageError, match="contradicts") as caught:
        detect(LLAMA, "qwen")
    assert "LlamaForCausalLM" in caught.value.why
    assert "llama or yi" in caught.value.hint


def test_unknown_model_type_is_refused() -> None:
    with pytest.raises(UsageError, match="Unknown model type 'lama'"):
        detect(LLAMA, "lama")


def test_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(UnsupportedModelError, match="Qwen3NextForCausalLM") as caught:
        detect(with_architecture("Qwen3NextForCausalLM"))
    assert "nearest supported one is Qwen3ForCausalLM" in caught.value.why


def test_config_without_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no 'architectures'"):
        detect({"hidden_size": 8})


def test_converted_checkpoint_is_recognised() -> None:
    with pytest.raises(CheckpointError, match="TensorRT-LLM checkpoint") as caught:
        detect({"architecture": "LlamaForCausalLM"})
    assert caught.value.code == "already_converted"


def test_quantized_weights_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="awq"):
        detect({**LLAMA, "quantization_config": {"quant_method": "awq"}})


def test_mlp_bias_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="mlp_bias"):
        trtllm_config({**LLAMA, "mlp_bias": True}, Layout())


def test_missing_size_is_named() -> None:
    config = {name: value for name, value in LLAMA.items() if name != "hidden_size"}
    with pytest.raises(CheckpointError, match="'hidden_size'"):
        trtllm_config(config, Layout())


@pytest.mark.parametrize("value", [0, -8, "64", 8.0, True, []])
@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size"])
def test_wrong_sizes_are_named(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is .* in config.json"):
        trtllm_config({**LLAMA, name: value}, Layout())


def test_more_heads_than_hidden_units() -> None:
    with pytest.raises(CheckpointError, match="hidden_size / num_attention_heads is 0"):
        trtllm_config({**LLAMA, "num_attention_heads": 128}, Layout())


def test_first_generation_chatglm_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="first generation"):
        detect(with_architecture("ChatGLMModel", position_encoding_2d=True))


@pytest.mark.parametrize(
    ("more", "version"),
    [
        ({}, "chatglm3"),
        ({"_name_or_path": "THUDM/chatglm2-6b-32k"}, "chatglm2"),
        ({"_name_or_path": "THUDM/glm-4-9b-chat"}, "glm4"),
        ({"padded_vocab_size": 151552}, "glm4"),
        ({"eos_token_id": [1, 2]}, "glm4"),
    ],
)
def test_chatglm_version_comes_from_the_config(more: dict[str, Any], version: str) -> None:
    assert detect(with_architecture("ChatGLMModel", multi_query_group_num=2, **more)).version == version


def test_chatglm_version_can_be_named() -> None:
    config = with_architecture(
        "ChatGLMModel", multi_query_group_num=2, ffn_hidden_size=96, rope_ratio=4, seq_length=128
    )
    written = trtllm_config(config, Layout(), "chatglm2")
    assert written["chatglm_version"] == "chatglm2"
    assert written["rotary_scaling"] == {"type": "linear", "factor": 4}
    assert written["rotary_base"] == 10000.0
    assert trtllm_config(config, Layout(), "chatglm3")["rotary_base"] == 40000.0


@pytest.mark.parametrize(
    ("architecture", "heads", "vocab", "version"),
    [
        ("BaiChuanForCausalLM", 32, 64000, "v1_7b"),
        ("BaichuanForCausalLM", 40, 64000, "v1_13b"),
        ("BaichuanForCausalLM", 40, 64008, "v1_13b"),
        ("BaichuanForCausalLM", 32, 125696, "v2_7b"),
        ("BaichuanForCausalLM", 40, 125696, "v2_13b"),
        ("BaichuanForCausalLM", 40, 125700, "v2_13b"),
    ],
)
def test_baichuan_version_comes_from_the_config(
    architecture: str, heads: int, vocab: int, version: str
) -> None:
    config = with_architecture(architecture, num_attention_heads=heads, vocab_size=vocab)
    assert detect(config).version == version


def test_baichuan_version_can_be_named() -> None:
    config = with_architecture("BaichuanForCausalLM", num_attention_heads=32, vocab_size=125696)
    assert detect(config, "baichuan1").version == "v1_7b"


@pytest.mark.parametrize(
    ("own", "asked", "result"),
    [
        ("float32", "auto", "float16"),
        ("bfloat16", "auto", "bfloat16"),
        (None, "auto", "float16"),
        ("float16", "bfloat16", "bfloat16"),
        ("float32", "float32", "float32"),
    ],
)
def test_dtype(own: str | None, asked: str, result: str) -> None:
    assert trtllm_config({**LLAMA, "torch_dtype": own}, Layout(dtype=asked))["dtype"] == result


def test_rope_parameters_of_transformers_5_are_read() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    written = trtllm_config({**LLAMA, "rope_parameters": rope}, Layout())
    assert written["rotary_base"] == 500000.0
    assert written["rotary_scaling"] == {"rope_type": "llama3", "factor": 8.0}


def test_default_rope_parameters_are_no_scaling() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    assert trtllm_config({**LLAMA, "rope_parameters": rope}, Layout())["rotary_scaling"] is None


@pytest.mark.parametrize("kind", ["linear", "dynamic", "longrope", "yarn"])
def test_rope_scaling_is_carried_over(kind: str) -> None:
    scaling = {"type": kind, "factor": 4.0}
    written = trtllm_config({**LLAMA, "rope_scaling": scaling}, Layout())
    assert written["rotary_scaling"] == {"type": kind, "factor": 4.0, "rope_type": kind}
    assert scaling == {"type": kind, "factor": 4.0}


def test_head_dim_null_means_hidden_over_heads() -> None:
    assert trtllm_config({**LLAMA, "head_dim": None}, Layout())["head_size"] == 8


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "int8"},
        {"tp_size": 0},
        {"pp_size": -1},
        {"embedding_sharding_dim": 2},
        {"tp_size": 4, "moe_tp_size": 3},
        {"tp_size": 2, "moe_ep_size": 4},
    ],
)
def test_impossible_layouts_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Layout(**arguments)


def test_expert_sizes_fill_up_tp_size() -> None:
    assert Layout(tp_size=8).moe_sizes == (8, 1)
    assert Layout(tp_size=8, moe_ep_size=4).moe_sizes == (2, 4)
    assert Layout(tp_size=8, moe_tp_size=2).moe_sizes == (2, 4)


def test_tensor_parallel_rank_varies_fastest() -> None:
    ranks = list(Layout(tp_size=2, pp_size=2).ranks())
    assert [(rank.pp_rank, rank.tp_rank) for rank in ranks] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(("layers", "stages"), [(4, 2), (5, 2), (7, 3), (3, 3)])
def test_stages_take_all_layers_and_the_first_the_rest(layers: int, stages: int) -> None:
    shares = [rank.layers(layers) for rank in Layout(pp_size=stages).ranks()]
    assert [layer for share in shares for layer in share] == list(range(layers))
    assert [len(share) for share in shares] == sorted((len(share) for share in shares), reverse=True)
    assert isinstance(next(Layout().ranks()), Rank)


@pytest.mark.parametrize(
    ("dims", "layout", "part"),
    [
        ({"heads": 6, "kv_heads": 6}, {"tp_size": 4}, "6 attention heads are not divisible by tp_size 4"),
        ({"kv_heads": 3, "heads": 6}, {"tp_size": 2}, "3 KV heads and tp_size 2"),
        ({"intermediate": 99}, {"tp_size": 2}, "intermediate_size 99"),
        ({}, {"pp_size": 4}, "pp_size 4 is more than the 3 layers"),
        ({"heads": 8, "kv_heads": 3}, {}, "8 attention heads are not a multiple of 3"),
        ({"experts": 6, "expert_intermediate": 8}, {"tp_size": 4, "moe_ep_size": 4}, "6 experts"),
        ({"experts": 4, "expert_intermediate": 6}, {"tp_size": 4}, "intermediate size 6"),
        ({"shared_intermediate": 7}, {"tp_size": 2}, "shared_expert_intermediate_size 7"),
        (
            {"hidden": 65, "use_parallel_embedding": True, "embedding_sharding_dim": 1},
            {"tp_size": 2},
            "hidden_size 65",
        ),
    ],
)
def test_splits_with_wrong_weights_are_refused_with_the_sizes(
    dims: dict[str, Any], layout: dict[str, Any], part: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_layout(Dims(**{**vars(DIMS), **dims}), Layout(**layout))
    assert part in caught.value.why
    assert "tp_size can be" in caught.value.hint


def test_possible_layouts_pass() -> None:
    assert [tp for tp in range(1, 9) if not layout_problems(DIMS, Layout(tp_size=tp))] == [1, 2, 4, 8]
