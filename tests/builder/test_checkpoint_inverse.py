"""restore(convert(x)) == x, for random models of every family and random layouts."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.checkpoint import restore_checkpoint, write_checkpoint
from builder.families import FAMILIES, Dims, Family, Layout, read_dims, trtllm_config
from builder.families.layout import STORED_NAMES
from builder.normhead import normalise_rows
from builder.shard import source_shapes
from common.tensors import Array, TensorSpec, TensorWriter, cast

WITHOUT_GQA = ("qwen", "baichuan")


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Tensor parallel sizes also beyond powers of two; experts cut both ways."""
    tp_size = draw(st.sampled_from([1, 2, 3, 4, 6]))
    return Layout(
        dtype=draw(st.sampled_from(sorted(STORED_NAMES))),
        tp_size=tp_size,
        pp_size=draw(st.integers(1, 3)),
        moe_ep_size=draw(st.sampled_from([each for each in (1, 2, 3, 4, 6) if tp_size % each == 0])),
        use_parallel_embedding=draw(st.booleans()),
        embedding_sharding_dim=draw(st.integers(0, 1)),
    )


@st.composite
def hf_configs(draw: st.DrawFn, family: Family, layout: Layout) -> dict[str, Any]:
    """A config that `layout` can split; sizes are small and seldom round."""
    tp_size, head_size = layout.tp_size, draw(st.integers(1, 4))
    fits = [each for each in (1, 2, 3, 4, 6, 12) if each % tp_size == 0 or tp_size % each == 0]
    kv_heads = (
        tp_size * draw(st.integers(1, 2)) if family.name in WITHOUT_GQA else draw(st.sampled_from(fits))
    )
    each = np.lcm(tp_size, kv_heads)
    heads = int(each) if family.name in WITHOUT_GQA else int(each) * draw(st.integers(1, 2))
    hidden = heads * head_size
    vocab = draw(st.integers(1, 30))
    config: dict[str, Any] = {
        "architectures": [draw(st.sampled_from(family.architectures))],
        "hidden_size": hidden,
        "num_hidden_layers": draw(st.integers(layout.pp_size, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": 2 * tp_size * draw(st.integers(1, 3)),
        "vocab_size": vocab,
        "max_position_embeddings": 64,
        "num_experts": 12,
        "num_local_experts": 12,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": tp_size * draw(st.integers(1, 2)),
        "shared_expert_intermediate_size": tp_size * draw(st.integers(1, 2)),
        "tie_word_embeddings": draw(st.booleans())
        and family.name not in ("baichuan", "chatglm", "internlm2"),
    }
    if family.name in ("llama", "mistral", "qwen3", "qwen3_moe"):
        config["head_dim"] = draw(st.integers(1, 4))
    if family.name in ("llama", "internlm2"):
        config |= {"attention_bias" if family.name == "llama" else "bias": draw(st.booleans())}
    if family.name == "chatglm":
        config |= {
            "multi_query_group_num": kv_heads,
            "ffn_hidden_size": config["intermediate_size"],
            "padded_vocab_size": vocab,
            "add_bias_linear": draw(st.booleans()),
            "add_qkv_bias": draw(st.booleans()),
        }
    return config


def write_source(
    folder: Path, config: dict[str, Any], family: Family, dims: Dims, dtype: str
) -> dict[str, Array]:
    """A random model with all tensors of the family; a tied head is left out."""
    random = np.random.default_rng(0)
    values = {
        name: cast(random.standard_normal(shape).astype(np.float32), "F32", dtype)
        for name, shape in source_shapes(family.weights, dims).items()
        if not (dims.tied and name == family.weights.last[-1].sources[0])
    }
    specs = {name: TensorSpec(dtype, value.shape) for name, value in values.items()}
    with TensorWriter(folder / "model.safetensors", specs) as writer:
        for name, value in values.items():
            writer.write(name, value)
    (folder / "config.json").write_text(json.dumps(config))
    return values


def expected(name: str, value: Array, source: str, target: str, dims: Dims) -> Array:
    result = cast(value, source, target)
    return normalise_rows(result, target) if dims.normalised_head and name == "lm_head.weight" else result


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_restoring_gives_the_model_back(family: Family, data: st.DataObject) -> None:
    layout = data.draw(layouts())
    config = data.draw(hf_configs(family, layout))
    source_dtype = data.draw(st.sampled_from(["F16", "BF16", "F32"]))
    written = trtllm_config(config, layout)
    dims, target_dtype = read_dims(written), STORED_NAMES[layout.dtype]
    with tempfile.TemporaryDirectory() as folder:
        values = write_source(Path(folder), config, family, dims, source_dtype)
        write_checkpoint(Path(folder), Path(folder, "out"), layout)
        restored = dict(restore_checkpoint(Path(folder, "out")))
        assert sorted(restored) == sorted(values)
        for name, value in values.items():
            kind = "F32" if restored[name].dtype == np.float32 else target_dtype
            wanted = expected(name, value, source_dtype, kind, dims)
            assert restored[name].shape == value.shape
            assert restored[name].tobytes() == wanted.tobytes(), name
