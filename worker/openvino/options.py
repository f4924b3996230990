"""Options of the cpu engine, and what follows from them and the model: limits and KV cache size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError, ResourceError
from worker.openvino.spec import ModelSpec
from worker.running import given_options
from worker.validate import Limits

BLOCK_TOKENS = 32
KV_MEMORY_SHARE = 0.25
PRECISIONS = ("exact", "fast", "int8")
# KV values are f32 when exact; otherwise u8 with two f32 (scale, zero point) for each token and head.
EXACT_KV_BYTES = 4
QUANTIZED_KV_OVERHEAD_BYTES = 8


@dataclass(frozen=True)
class EngineOptions:
    """The `options` of worker.json. None means: from the model, or from the machine.

    `max_attention_window_size` is the sliding window in tokens, which a TRT-LLM checkpoint does not carry.
    """

    precision: str = "fast"
    kv_cache_tokens: int | None = None
    max_batch_size: int = 64
    max_input_len: int | None = None
    max_output_len: int | None = None
    threads: int | None = None
    max_attention_window_size: int | None = None

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> EngineOptions:
        """Raises ConfigError for an unknown option or a value that is not allowed."""
        given = given_options(cls, "cpu", document)
        for name, value in given.items():
            if name == "precision":
                if value not in PRECISIONS:
                    raise _invalid(f"precision is {value!r}; allowed are {', '.join(PRECISIONS)}")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _invalid(f"{name} is {value!r}; allowed is a whole number above 0")
        return cls(**given)


def _invalid(problem: str) -> ConfigError:
    return ConfigError(
        f"The cpu engine's options are not valid: {problem}.",
        hint="Correct deploy/config.json and render the model repository again.",
        code="worker_options_invalid",
    )


def kv_bytes_per_token(spec: ModelSpec, precision: str) -> int:
    """Bytes of KV cache that one token takes in all layers."""
    heads = 2 * spec.layers * spec.kv_heads
    if precision == "exact":
        return heads * spec.head_size * EXACT_KV_BYTES
    return heads * (spec.head_size + QUANTIZED_KV_OVERHEAD_BYTES)


def kv_cache_blocks(spec: ModelSpec, options: EngineOptions) -> int:
    """Blocks of the KV cache: as configured, else what full batches need within a share of free memory.

    Raises:
        ResourceError: not even one sequence of two blocks fits.
    """
    per_token = kv_bytes_per_token(spec, options.precision)
    tokens = options.kv_cache_tokens or _tokens_from_memory(spec, options, per_token)
    blocks = -(-tokens // BLOCK_TOKENS)
    free = available_memory_bytes()
    if blocks < 2 or blocks * BLOCK_TOKENS * per_token > free:
        raise ResourceError(
            f"A KV cache of {max(blocks, 2) * BLOCK_TOKENS} tokens does not fit.",
            why=f"It takes {max(blocks, 2) * BLOCK_TOKENS * per_token >> 20} MiB; {free >> 20} MiB are free.",
            hint="Lower kv_cache_tokens in deploy/config.json, or free memory.",
            code="kv_cache_too_large",
        )
    return blocks


def _tokens_from_memory(spec: ModelSpec, options: EngineOptions, per_token: int) -> int:
    affordable = int(available_memory_bytes() * KV_MEMORY_SHARE) // per_token
    longest = max_total_len(spec, options)
    wanted = affordable if longest is None else options.max_batch_size * longest
    return min(affordable, wanted)


def max_total_len(spec: ModelSpec, options: EngineOptions) -> int | None:
    """Longest prompt and answer together by model and options; None when neither says."""
    configured = None
    if options.max_input_len and options.max_output_len:
        configured = options.max_input_len + options.max_output_len
    known = [limit for limit in (spec.max_context, configured) if limit]
    return min(known) if known else None


def limits(spec: ModelSpec, options: EngineOptions, kv_tokens: int) -> Limits:
    """What a request may ask for, given a KV cache of `kv_tokens` tokens."""
    total = min(max_total_len(spec, options) or kv_tokens, kv_tokens)
    return Limits(
        vocab_size=spec.vocab_size,
        max_input_len=min(options.max_input_len or total, total - 1),
        max_output_len=min(options.max_output_len or total, total - 1),
        max_total_len=total,
    )


def available_memory_bytes() -> int:
    """Memory that can be taken now: what the kernel calls available, capped by this process's cgroup."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) << 10, _cgroup_headroom())
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _cgroup_headroom() -> int:
    """Bytes left under the cgroup v2 limit; a number without meaning as a limit where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 1 << 62
    return (1 << 62) if limit == "max" else max(int(limit) - used, 0)
