"""How close the two best logits were where answers of benchmarks/gpu_correctness.py left the reference.

    python -m benchmarks.logit_gaps CHECKPOINT benchmarks/results/h100-hf-correctness.json

Runs the demo checkpoint in f32 on the CPU; needs PyTorch and transformers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

EXPECTED = Path(__file__).parents[1] / "tests" / "worker" / "data" / "expected_demo.json"


def main() -> None:
    checkpoint, results = sys.argv[1:]
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    found = json.loads(Path(results).read_text(encoding="utf-8"))
    differing = found["bfloat16"]["greedy_against_transformers_f32"]["differing"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for prompt, place in differing.items():
        one, at = expected[prompt], place["first_difference"]
        with torch.no_grad():
            logits = model(torch.tensor([one["ids"] + one["tokens"][:at]])).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        row = {"prompt": prompt, "token": at, "best": round(best, 2), "gap": round(best - second, 3)}
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
