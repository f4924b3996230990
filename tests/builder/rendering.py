"""What the tests of render share: configurations, parsed results, the contract's form of tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from builder import pbtxt
from common.config import DeployConfig, parse_config
from common.paths import SOURCE_ROOT, Home

CONTRACT = json.loads((SOURCE_ROOT / "tests/data/contracts/triton_tensorrtllm.json").read_text())["models"]
KINDS = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
TENSOR_TYPES = {
    "${logits_datatype}": "TYPE_FP32",
    "${encoder_input_features_data_type}": "TYPE_FP16",
    "${prompt_embedding_table_data_type}": "TYPE_FP16",
}


def config_of(**models: dict[str, Any]) -> DeployConfig:
    entries = {
        model_id: {"engine": "cpu", "model_path": "models/m", **entry} for model_id, entry in models.items()
    }
    return parse_config({"models": entries})


def rendered(home: Home, model: str = "m", kind: str = "tensorrt_llm") -> Any:
    """The parsed config.pbtxt of one rendered model."""
    folder = model if kind == "ensemble" else f"{model}-{kind}"
    path = home.repository / folder / "config.pbtxt"
    return pbtxt.parse_config(path.read_text(encoding="utf-8"), source=str(path))


def tensors(entries: Any) -> list[dict[str, Any]]:
    """Tensors of a parsed configuration in the contract's form."""
    types = pbtxt.model_config_messages().DataType
    found = []
    for entry in entries:
        one = {"name": entry.name, "data_type": types.Name(entry.data_type), "dims": list(entry.dims)}
        for flag in ("optional", "allow_ragged_batch"):
            if getattr(entry, flag, False):
                one[flag] = True
        if entry.HasField("reshape"):
            one["reshape"] = list(entry.reshape.shape)
        found.append(one)
    return found


def wanted(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**entry, "data_type": TENSOR_TYPES.get(entry["data_type"], entry["data_type"])} for entry in entries
    ]


def snapshot(repository: Path) -> dict[str, tuple[bytes, int]]:
    paths = (path for path in sorted(repository.rglob("*")) if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
