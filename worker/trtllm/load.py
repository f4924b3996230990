"""Start TensorRT-LLM's PyTorch runtime: the only module of it that the worker imports by name."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tensorrt_llm import LLM
from tensorrt_llm.llmapi import LoRARequest

from common.errors import CheckpointError
from worker.descendants import end_with_worker
from worker.protocol import LOGIT_BIAS, LORA
from worker.trtllm.adapter import TrtLlmAdapter
from worker.trtllm.following import Follower
from worker.trtllm.lora import find_adapters, lora_arguments
from worker.trtllm.options import EngineOptions, llm_arguments
from worker.trtllm.sampling import sampling_params
from worker.validate import Limits

ROOT = str(Path(__file__).resolve().parents[2])
DEFAULT_BATCH_SIZE = 256
STATS_SECONDS = 1.0


def load(package: Path, options: Mapping[str, Any]) -> TrtLlmAdapter:
    """Start tensorrt_llm.LLM on the package's Hugging Face checkpoint.

    Raises:
        ConfigError: an option is wrong.
        PackageError: the package is not one for the PyTorch runtime.
        CheckpointError: the checkpoint's config.json does not say what limits need.
        Exception: whatever TensorRT-LLM raises while it starts; the caller reports it.
    """
    settings = EngineOptions.parse(options)
    adapters = find_adapters(Path(settings.lora_dir)) if settings.lora_dir else {}
    arguments = llm_arguments(package, settings) | (lora_arguments(adapters) if adapters else {})
    config = model_config(str(arguments["model"]))
    # The processes that sample unpickle worker.trtllm.restrictions.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    llm = LLM(**arguments)
    end_with_worker()
    features = (LOGIT_BIAS, LORA) if adapters else (LOGIT_BIAS,)
    bounds = replace(_limits(config, settings, arguments), features=features)
    statistics = Statistics(llm)
    ready = bounds.ready(
        "cuda-trt",
        max_batch_size=int(arguments.get("max_batch_size") or DEFAULT_BATCH_SIZE),
        # TensorRT-LLM tells the size of its cache only with its statistics, once it computes.
        kv_cache_tokens=0,
        kv_block_tokens=0,
    )
    return TrtLlmAdapter(
        Follower(llm),
        ready,
        bounds,
        parameters=sampling_params,
        loras={number: LoRARequest(path.name, number, str(path)) for number, path in adapters.items()},
        healthy=health_check(llm),
        kv_used=statistics.kv_used,
    )


class Statistics:
    """The LLM's iteration statistics, read by a thread of its own while requests run."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._kv_used = 0.0
        threading.Thread(target=self._read_forever, name="statistics", daemon=True).start()

    def kv_used(self) -> float:
        return self._kv_used

    def _read_forever(self) -> None:
        while True:
            time.sleep(STATS_SECONDS)
            try:
                found = self._llm.get_stats(timeout=STATS_SECONDS)
            except Exception:  # statistics are a convenience: requests go on without them
                return
            if found:
                self._kv_used = kv_used_fraction(found[-1])


def kv_used_fraction(statistics: Mapping[str, Any] | str) -> float:
    """Share of the KV cache's blocks in use by one iteration's statistics, a document or its JSON text."""
    document = json.loads(statistics) if isinstance(statistics, str) else statistics
    cache = document.get("kvCacheStats") or {}
    blocks, free = cache.get("maxNumBlocks") or 0, cache.get("freeNumBlocks") or 0
    return round(1 - free / blocks, 4) if blocks else 0.0


def health_check(llm: Any) -> Callable[[], bool]:
    """The LLM's own check where this version has one."""
    check = getattr(llm, "_check_health", None)
    return check if check is not None else lambda: True


def model_config(model: str) -> Mapping[str, Any]:
    """config.json of the checkpoint: a folder, or what Hugging Face's cache holds of a hub's id.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        path = Path(model) / "config.json"
        if path.is_file():
            document = json.loads(path.read_text(encoding="utf-8"))
        else:
            from transformers import AutoConfig  # beside tensorrt_llm; only a hub's id needs it

            document = AutoConfig.from_pretrained(model).to_dict()
        text: Mapping[str, Any] = document.get("text_config") or document
        int(text["vocab_size"])
        return text
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"The config.json of {model} says no vocabulary size.",
            why=str(error),
            hint="Check the model in llm_args.json of the package.",
            code="config_unreadable",
        ) from error


def _limits(config: Mapping[str, Any], options: EngineOptions, arguments: Mapping[str, Any]) -> Limits:
    known = (arguments.get("max_seq_len"), config.get("max_position_embeddings"))
    total = min((int(length) for length in known if length), default=2048)
    return Limits(
        vocab_size=int(config["vocab_size"]),
        max_input_len=min(int(arguments.get("max_input_len") or total), total - 1),
        max_output_len=min(options.max_output_len or total, total - 1),
        max_total_len=total,
    )
