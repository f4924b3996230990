"""The weight maps: one table a family, from Hugging Face names to TensorRT-LLM names.

TensorRT-LLM's `mlp.fc` is the activated branch (HF gate_proj) and its `mlp.gate` the other one (HF
up_proj). Inside experts the order is up, then gate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from builder.families.dims import Dims
from builder.families.layout import Rank
from builder.families.placement import (
    Entry,
    Mosaic,
    columns,
    embedding,
    expert_columns,
    expert_rows,
    qkv_grouped,
    qkv_separate,
    qkv_stacked,
    rows,
    swapped_halves,
    vocabulary,
    whole,
)


@dataclass(frozen=True)
class WeightMap:
    """All tensors of a family.

    Args:
        first: tensors of the first pipeline stage, before the layers.
        layer: tensors of every layer.
        last: tensors of the last stage, after the layers.
        ignored: patterns of source tensors that carry no weights of the model.
    """

    first: tuple[Entry, ...]
    layer: tuple[Entry, ...]
    last: tuple[Entry, ...]
    ignored: tuple[str, ...] = (
        "*rotary_emb.*",
        "*rotary_pos_emb.inv_freq",
        "*.attn.masked_bias",
        "*.future_mask",
        "*.alibi_mask",
    )


Split = Callable[[Entry, Dims, Rank, int], Mosaic]


def _outer(target: str, source: str, split: Split, *, normalised: bool = False) -> Entry:
    return Entry(target, (source,), "vocab", "hidden", split, normalised=normalised)


def _linear(target: str, source: str, size: str, width: str, split: Split, when: str = "one") -> Entry:
    return Entry(f"transformer.layers.{{i}}.{target}", (source,), size, width, split, when)


def _norm(target: str, source: str, size: str = "hidden") -> Entry:
    name = target if target.startswith("transformer.") else f"transformer.layers.{{i}}.{target}"
    return Entry(f"{name}.weight", (f"{source}.weight",), size, "", whole)


def _qkv(sources: tuple[str, ...], split: Split, *, kind: str = "weight", when: str = "one") -> Entry:
    heights = "query key key" if len(sources) == 3 else "fused_qkv"
    names = tuple(f"{source}.{kind}" for source in sources)
    width = "hidden" if kind == "weight" else ""
    return Entry(f"transformer.layers.{{i}}.attention.qkv.{kind}", names, heights, width, split, when)


def _gated_mlp(gate: str, up: str, down: str) -> tuple[Entry, ...]:
    return (
        _linear("mlp.fc.weight", gate, "intermediate", "hidden", rows),
        _linear("mlp.gate.weight", up, "intermediate", "hidden", rows),
        _linear("mlp.proj.weight", down, "hidden", "intermediate", columns),
    )


def _experts(prefix: str, router: str, up: str, gate: str, down: str) -> tuple[Entry, ...]:
    layer = "transformer.layers.{i}.mlp."
    expert = f"{prefix}.experts.{{e}}."
    return (
        Entry(f"{layer}router.weight", (router,), "experts", "hidden", whole, dtype="F32"),
        Entry(
            f"{layer}fc.weight",
            (f"{expert}{up}.weight", f"{expert}{gate}.weight"),
            "expert_intermediate",
            "hidden",
            expert_rows,
        ),
        Entry(
            f"{layer}proj.weight",
            (f"{expert}{down}.weight",),
            "hidden",
            "expert_intermediate",
            expert_columns,
        ),
    )


L = "model.layers.{g}."
OUTER_FIRST = (_outer("transformer.vocab_embedding.weight", "model.embed_tokens.weight", embedding),)
OUTER_LAST = (
    _norm("transformer.ln_f", "model.norm"),
    _outer("lm_head.weight", "lm_head.weight", vocabulary),
)
NORMS = (
    _norm("input_layernorm", f"{L}input_layernorm"),
    _norm("post_layernorm", f"{L}post_attention_layernorm"),
)
SEPARATE = tuple(f"{L}self_attn.{kind}_proj" for kind in "qkv")
ATTENTION = (
    _qkv(SEPARATE, qkv_separate),
    _qkv(SEPARATE, qkv_separate, kind="bias", when="qkv_bias"),
    _linear("attention.dense.weight", f"{L}self_attn.o_proj.weight", "hidden", "query", columns),
    _linear("attention.dense.bias", f"{L}self_attn.o_proj.bias", "hidden", "", whole, "dense_bias"),
)
MLP = _gated_mlp(f"{L}mlp.gate_proj.weight", f"{L}mlp.up_proj.weight", f"{L}mlp.down_proj.weight")

LLAMA = WeightMap(OUTER_FIRST, (*NORMS, *ATTENTION, *MLP), OUTER_LAST)

MIXTRAL = WeightMap(
    OUTER_FIRST,
    (
        *NORMS,
        *ATTENTION,
        *_experts(f"{L}block_sparse_moe", f"{L}block_sparse_moe.gate.weight", "w3", "w1", "w2"),
    ),
    OUTER_LAST,
)

QK_NORMS = (
    _norm("attention.q_layernorm", f"{L}self_attn.q_norm", "head_size"),
    _norm("attention.k_layernorm", f"{L}self_attn.k_norm", "head_size"),
)
QWEN3 = WeightMap(OUTER_FIRST, (*NORMS, *ATTENTION, *QK_NORMS, *MLP), OUTER_LAST)

QWEN_EXPERTS = _experts(f"{L}mlp", f"{L}mlp.gate.weight", "up_proj", "gate_proj", "down_proj")
SHARED = f"{L}mlp.shared_expert"
SHARED_EXPERT = (
    Entry(
        "transformer.layers.{i}.mlp.shared_expert.fc.weight",
        (f"{SHARED}.up_proj.weight", f"{SHARED}.gate_proj.weight"),
        "shared_intermediate",
        "hidden",
        rows,
    ),
    _linear(
        "mlp.shared_expert.proj.weight",
        f"{SHARED}.down_proj.weight",
        "hidden",
        "shared_intermediate",
        columns,
    ),
    _linear("mlp.shared_expert_gate.weight", f"{SHARED}_gate.weight", "one", "hidden", whole),
)
QWEN2_MOE = WeightMap(OUTER_FIRST, (*NORMS, *ATTENTION, *QWEN_EXPERTS, *SHARED_EXPERT), OUTER_LAST)
QWEN3_MOE = WeightMap(OUTER_FIRST, (*NORMS, *ATTENTION, *QK_NORMS, *QWEN_EXPERTS), OUTER_LAST)

H = "transformer.h.{g}."
QWEN1 = WeightMap(
    (_outer("transformer.vocab_embedding.weight", "transformer.wte.weight", embedding),),
    (
        _norm("input_layernorm", f"{H}ln_1"),
        _norm("post_layernorm", f"{H}ln_2"),
        _qkv((f"{H}attn.c_attn",), qkv_stacked),
        _qkv((f"{H}attn.c_attn",), qkv_stacked, kind="bias"),
        _linear("attention.dense.weight", f"{H}attn.c_proj.weight", "hidden", "query", columns),
        *_gated_mlp(f"{H}mlp.w2.weight", f"{H}mlp.w1.weight", f"{H}mlp.c_proj.weight"),
    ),
    (
        _norm("transformer.ln_f", "transformer.ln_f"),
        _outer("lm_head.weight", "lm_head.weight", vocabulary),
    ),
)

BAICHUAN = WeightMap(
    OUTER_FIRST,
    (
        *NORMS,
        _qkv((f"{L}self_attn.W_pack",), qkv_stacked),
        _linear("attention.dense.weight", f"{L}self_attn.o_proj.weight", "hidden", "query", columns),
        *MLP,
    ),
    (
        _norm("transformer.ln_f", "model.norm"),
        _outer("lm_head.weight", "lm_head.weight", vocabulary, normalised=True),
    ),
)

G = "transformer.encoder.layers.{g}."
CHATGLM = WeightMap(
    (
        _outer(
            "transformer.vocab_embedding.weight", "transformer.embedding.word_embeddings.weight", embedding
        ),
    ),
    (
        _norm("input_layernorm", f"{G}input_layernorm"),
        _norm("post_layernorm", f"{G}post_attention_layernorm"),
        _qkv((f"{G}self_attention.query_key_value",), qkv_stacked),
        _qkv((f"{G}self_attention.query_key_value",), qkv_stacked, kind="bias", when="qkv_bias"),
        _linear("attention.dense.weight", f"{G}self_attention.dense.weight", "hidden", "query", columns),
        _linear("attention.dense.bias", f"{G}self_attention.dense.bias", "hidden", "", whole, "dense_bias"),
        _linear(
            "mlp.fc.weight", f"{G}mlp.dense_h_to_4h.weight", "two_intermediate", "hidden", swapped_halves
        ),
        _linear(
            "mlp.fc.bias", f"{G}mlp.dense_h_to_4h.bias", "two_intermediate", "", swapped_halves, "mlp_bias"
        ),
        _linear("mlp.proj.weight", f"{G}mlp.dense_4h_to_h.weight", "hidden", "intermediate", columns),
        _linear("mlp.proj.bias", f"{G}mlp.dense_4h_to_h.bias", "hidden", "", whole, "mlp_bias"),
    ),
    (
        _norm("transformer.ln_f", "transformer.encoder.final_layernorm"),
        _outer("lm_head.weight", "transformer.output_layer.weight", vocabulary),
    ),
)

INTERNLM2 = WeightMap(
    (_outer("transformer.vocab_embedding.weight", "model.tok_embeddings.weight", embedding),),
    (
        _norm("input_layernorm", f"{L}attention_norm"),
        _norm("post_layernorm", f"{L}ffn_norm"),
        _qkv((f"{L}attention.wqkv",), qkv_grouped),
        _qkv((f"{L}attention.wqkv",), qkv_grouped, kind="bias", when="qkv_bias"),
        _linear("attention.dense.weight", f"{L}attention.wo.weight", "hidden", "query", columns),
        _linear("attention.dense.bias", f"{L}attention.wo.bias", "hidden", "", whole, "dense_bias"),
        *_gated_mlp(f"{L}feed_forward.w1.weight", f"{L}feed_forward.w3.weight", f"{L}feed_forward.w2.weight"),
    ),
    (
        _norm("transformer.ln_f", "model.norm"),
        _outer("lm_head.weight", "output.weight", vocabulary),
    ),
)
