"""Make what transformers says, in float32, for the tests of the graph.

    python -m tests.worker.make_expected_tokens [--demo HF_FOLDER]

writes data/expected_tokens.json, the greedy tokens of the tiny models, and data/expected_rotary.json,
rotary tables of models of real size; with --demo data/expected_demo.json, from the demo checkpoint.
Needs PyTorch and transformers, which neither the product nor its tests need.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests import tiny
from tests.worker.reference_models import Logits, Reference, model_logits, native_logits

DATA = Path(__file__).parent / "data"
SMALLEST_GAP = 1e-3

# Rotary settings of released models, at their real sizes.
ROTARY_CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Qwen2.5-7B-128K": {
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "yarn with its own factor": {
        "head_dim": 64,
        "max_position_embeddings": 65536,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "attention_factor": 1.25,
            "beta_fast": 24,
            "beta_slow": 2,
        },
    },
    "yarn with mscale": {
        "head_dim": 64,
        "max_position_embeddings": 163840,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
        },
    },
    "longrope, short table": {
        "head_dim": 32,
        "max_position_embeddings": 131072,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "longrope",
            "short_factor": [1.0 + 0.05 * index for index in range(16)],
            "long_factor": [1.0 + 4.0 * index for index in range(16)],
        },
    },
    "linear": {
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "rope_scaling": {"factor": 2.5, "rope_type": "linear"},
    },
    "dynamic": {
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic"},
    },
}

DEMO_TOKENS = 32
DEMO_PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "你好，请介绍一下自己",
    "请用一句话解释什么是人工智能。",
    "Explain gravity to a child.",
    "List three prime numbers larger than ten.",
    "def fibonacci(n):",
    "中国的首都是哪里？",
    "Translate to French: Good morning, my friend.",
    "Why is the sky blue?",
    "The quick brown fox",
    "1, 2, 3, 4,",
    "写一首关于春天的诗。",
    "Tell me a fun fact about octopuses.",
    "Emoji test: 🙂🚀🌍",
    "Summarise the rules of chess in two sentences.",
)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="HF_FOLDER")
    arguments = parser.parse_args()
    DATA.mkdir(exist_ok=True)
    torch.set_grad_enabled(False)
    if arguments.demo:
        demo = demo_tokens(arguments.demo)
        (DATA / "expected_demo.json").write_text(_compact(demo), encoding="utf-8")
        return
    check_reference()
    rotary = {name: rotary_table(config) for name, config in ROTARY_CONFIGS.items()}
    (DATA / "expected_rotary.json").write_text(_compact(rotary), encoding="utf-8")
    tokens = {name: tiny_tokens(name) for name in tiny.CONFIGS}
    if not all(tokens.values()):
        raise SystemExit("Too close to a tie for a comparison of tokens; change tiny.PROMPT_SEEDS.")
    (DATA / "expected_tokens.json").write_text(_compact(tokens), encoding="utf-8")


def _compact(rows: dict[str, Any]) -> str:
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in rows.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def tiny_tokens(name: str) -> list[list[int]]:
    logits = model_logits(name)
    rows, gaps = zip(*(greedy(logits, prompt, tiny.NEW_TOKENS) for prompt in tiny.prompts(name)), strict=True)
    print(f"{name}: smallest gap between the best two logits {min(gaps):.4f}")
    return list(rows) if min(gaps) >= SMALLEST_GAP else []


def greedy(logits: Logits, prompt: list[int], count: int) -> tuple[list[int], float]:
    """The `count` tokens after `prompt`, each from a forward pass over everything, and the smallest gap."""
    ids, gap = list(prompt), math.inf
    for _ in range(count):
        best = torch.topk(logits(ids), 2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], gap


def check_reference() -> None:
    """`Reference` must agree with transformers where transformers has the model."""
    for name in ("llama", "qwen2"):
        config, weights = tiny.CONFIGS[name], tiny.weights(name)
        ours, theirs = Reference(config, weights), native_logits(dict(config), weights)
        for prompt in tiny.prompts(name):
            torch.testing.assert_close(ours(prompt), theirs(prompt), atol=1e-4, rtol=1e-4)


def rotary_table(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the radians per position and the factor that transformers makes from it."""
    sizes = {"hidden_size": config["head_dim"] * 8, "num_attention_heads": 8}
    made = LlamaRotaryEmbedding(transformers.LlamaConfig(**sizes, **copy.deepcopy(config)))
    return {**config, "frequencies": made.inv_freq.tolist(), "factor": made.attention_scaling}


def demo_tokens(folder: Path) -> dict[str, Any]:
    """DEMO_PROMPTS as chat turns in token ids, and the greedy answers up to the end token."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = {}
    for prompt in DEMO_PROMPTS:
        turn = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
        output = model.generate(torch.tensor([ids]), max_new_tokens=DEMO_TOKENS, do_sample=False)
        best = torch.topk(model(output).logits[0, len(ids) - 1 : -1], 2).values
        gap = float((best[:, 0] - best[:, 1]).min())
        print(f"{prompt}: smallest gap between the best two logits {gap:.4f}")
        if gap < SMALLEST_GAP:
            raise SystemExit("Too close to a tie for a comparison of tokens; change the prompt.")
        rows[prompt] = {"ids": ids, "tokens": output[0, len(ids) :].tolist()}
    return rows


if __name__ == "__main__":
    main()
