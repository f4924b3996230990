"""Repositories as upstream's templates give them: placeholders filled or left, stock Python models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.paths import SOURCE_ROOT

CONTRACT = json.loads((SOURCE_ROOT / "tests/data/contracts/triton_tensorrtllm.json").read_text())["models"]
STOCK_MODEL = (
    "import json\n\nimport numpy as np\nimport triton_python_backend_utils as pb_utils\n"
    "from transformers import AutoTokenizer\n\n\n"
    "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
)
INSTANCES = {
    "preprocessing": "preprocessing_instance_count",
    "postprocessing": "postprocessing_instance_count",
    "tensorrt_llm_bls": "bls_instance_count",
}
FILLED = {
    "triton_backend": "tensorrtllm",
    "triton_max_batch_size": "64",
    "decoupled_mode": "True",
    "max_queue_delay_microseconds": "0",
    "max_queue_size": "0",
    "encoder_input_features_data_type": "TYPE_FP16",
    "logits_datatype": "TYPE_FP32",
    "prompt_embedding_table_data_type": "TYPE_FP16",
    "preprocessing_instance_count": "1",
    "postprocessing_instance_count": "1",
    "bls_instance_count": "1",
    "batching_strategy": "inflight_fused_batching",
    "batch_scheduler_policy": "guaranteed_no_evict",
    "kv_cache_free_gpu_mem_fraction": "0.9",
    "enable_kv_cache_reuse": "True",
    "exclude_input_in_output": "True",
}


def write_upstream(repository: Path, values: dict[str, str], *, engine: Path, tokenizer: Path) -> Path:
    """The five models of inflight_batcher_llm; placeholders that `values` lacks stay."""
    places = {"engine_dir": str(engine), "tokenizer_dir": str(tokenizer), **values}
    for kind in CONTRACT:
        folder = repository / kind / "1"
        folder.mkdir(parents=True)
        text = _config(kind)
        for name, value in places.items():
            text = text.replace(f"${{{name}}}", value)
        (folder.parent / "config.pbtxt").write_text(text)
        if kind not in ("ensemble", "tensorrt_llm"):
            (folder / "model.py").write_text(STOCK_MODEL)
    return repository


def write_engine(folder: Path, *, ranks: int = 1, version: str = "1.2.1") -> Path:
    """What lint reads of an engine."""
    folder.mkdir(parents=True)
    config = {"version": version, "pretrained_config": {"mapping": {"world_size": ranks}}}
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (folder / f"rank{rank}.engine").write_bytes(b"engine")
    return folder


def _config(kind: str) -> str:
    contract = CONTRACT[kind]
    lines = [f'name: "{kind}"', "max_batch_size: ${triton_max_batch_size}"]
    if kind == "ensemble":
        lines.append('platform: "ensemble"')
    else:
        lines.append('backend: "${triton_backend}"' if kind == "tensorrt_llm" else 'backend: "python"')
    if kind in ("tensorrt_llm", "tensorrt_llm_bls"):
        lines.append("model_transaction_policy { decoupled: ${decoupled_mode} }")
    if kind in ("preprocessing", "tensorrt_llm"):
        lines.append(
            "dynamic_batching { preferred_batch_size: [ ${triton_max_batch_size} ] "
            "max_queue_delay_microseconds: ${max_queue_delay_microseconds} "
            "default_queue_policy: { max_queue_size: ${max_queue_size} } }"
        )
    if kind in INSTANCES:
        lines.append(f"instance_group [ {{ count: ${{{INSTANCES[kind]}}} kind: KIND_CPU }} ]")
    lines += [_tensor("input", tensor) for tensor in contract["inputs"]]
    lines += [_tensor("output", tensor) for tensor in contract["outputs"]]
    if kind == "ensemble":
        # Upstream's template declares this output twice.
        lines.append('output { name: "kv_cache_alloc_total_blocks" data_type: TYPE_INT32 dims: [ 1 ] }')
        lines.append(_steps(contract["steps"]))
    for key in contract["parameters"]:
        placeholder = contract["placeholders"].get(key)
        value = f"${{{placeholder}}}" if placeholder else "no"
        lines += [
            "parameters: {",
            f'  key: "{key}"',
            "  value: {",
            f'    string_value: "{value}"',
            "  }",
            "}",
        ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, tensor: dict[str, Any]) -> str:
    parts = [f'name: "{tensor["name"]}"', f"data_type: {tensor['data_type']}", f"dims: {tensor['dims']}"]
    parts += [f"{flag}: true" for flag in ("optional", "allow_ragged_batch") if tensor.get(flag)]
    parts += ["reshape: { shape: [ ] }"] if "reshape" in tensor else []
    return f"{kind} {{ {' '.join(parts)} }}"


def _steps(steps: list[dict[str, Any]]) -> str:
    def maps(kind: str, pairs: dict[str, str]) -> str:
        return " ".join(f'{kind} {{ key: "{key}" value: "{value}" }}' for key, value in pairs.items())

    written = (
        f'step {{ model_name: "{step["model_name"]}" model_version: -1 '
        f"{maps('input_map', step['input_map'])} {maps('output_map', step['output_map'])} }}"
        for step in steps
    )
    return "ensemble_scheduling { " + " ".join(written) + " }"
