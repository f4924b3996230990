"""A load test with NVIDIA's AIPerf, where it is installed: the same levels, over the OpenAI route.

The API key reaches it through the environment (its configuration file names the variable only). genai-perf,
which it replaces, takes keys on the command line and is not used.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from common import atomic
from common.config import load_config
from common.errors import ConfigError, ServiceError
from common.paths import home
from runtime.client import KEY_VARIABLE, Endpoint
from runtime.loadtest import Level, LoadRequest, OnLevel, Progress

EXPORT = "profile_export_aiperf.json"
BUILT_IN_TOKENIZER = "builtin"
LAST_LINES = 5


def find() -> str | None:
    return shutil.which("aiperf")


def run(
    endpoint: Endpoint,
    request: LoadRequest,
    progress: Progress = lambda text: None,
    on_level: OnLevel = lambda level: None,
) -> list[Level]:
    """Measure every level, lowest first.

    Args:
        on_level: called with each level when it is measured, so that an interrupt loses none.

    Raises:
        ServiceError: aiperf failed; with its last lines.
    """
    levels = []
    for concurrency in sorted(set(request.concurrency)):
        progress(f"aiperf: {concurrency} at once, {request.count(concurrency)} requests ...")
        with tempfile.TemporaryDirectory(prefix="ew-aiperf-") as folder:
            levels.append(_level(endpoint, request, concurrency, Path(folder)))
        on_level(levels[-1])
    return levels


def configuration(endpoint: Endpoint, request: LoadRequest, concurrency: int, folder: Path) -> dict[str, Any]:
    """aiperf's configuration document for one level."""
    count = request.count(concurrency)
    benchmark = {
        "model": request.model,
        "endpoint": {
            "url": endpoint.url,
            "type": "chat",
            "streaming": True,
            "api_key": f"${{{KEY_VARIABLE}}}",
            "extra": {"temperature": 0},
        },
        "dataset": {
            "type": "synthetic",
            "entries": count,
            "prompts": {"isl": request.input_len, "osl": request.output_len},
        },
        "phases": {"type": "concurrency", "concurrency": concurrency, "requests": count},
        "tokenizer": {"name": tokenizer_of(request.model)},
        "artifacts": {"dir": str(folder)},
    }
    return {"schemaVersion": "2.0", "benchmark": benchmark}


def tokenizer_of(model: str) -> str:
    """The package's tokenizer folder when the model is in this home's config; else aiperf's own."""
    try:
        entry = load_config(home().config).models.get(model)
    except ConfigError:
        entry = None
    folder = home().resolve(entry.model_path) / "tokenizer" if entry else None
    return str(folder) if folder and folder.is_dir() else BUILT_IN_TOKENIZER


def level_of(export: dict[str, Any], concurrency: int) -> Level:
    """aiperf's figures as ours; what it did not measure is None."""

    def figure(metric: str, statistic: str = "avg") -> float | None:
        value = export.get(metric, {}).get(statistic)
        return None if value is None else round(float(value), 2)

    done = int(figure("completed_request_count") or figure("request_count") or 0)
    failed = int(figure("error_request_count") or 0)
    return Level(
        concurrency=concurrency,
        requests=done + failed,
        failed=failed,
        seconds=figure("benchmark_duration") or 0.0,
        input_tokens=figure("input_sequence_length") or 0.0,
        output_tokens=figure("output_sequence_length") or 0.0,
        requests_per_second=figure("request_throughput") or 0.0,
        tokens_per_second=figure("output_token_throughput") or 0.0,
        ttft_p50=figure("time_to_first_token", "p50"),
        ttft_p99=figure("time_to_first_token", "p99"),
        itl_p50=figure("inter_chunk_latency", "p50"),
        itl_p99=figure("inter_chunk_latency", "p99"),
        tpot_mean=figure("inter_token_latency"),
        errors=tuple(str(error) for error in export.get("error_summary", ()))[:3],
    )


def _level(endpoint: Endpoint, request: LoadRequest, concurrency: int, folder: Path) -> Level:
    config = folder / "aiperf.yaml"
    atomic.write_json(config, configuration(endpoint, request, concurrency, folder))  # JSON is YAML
    done = subprocess.run(
        [find() or "aiperf", "profile", "--config", str(config), "--ui", "none"],
        env={**os.environ, KEY_VARIABLE: endpoint.key},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    export = folder / EXPORT
    if done.returncode != 0 or not export.is_file():
        lines = (done.stdout + done.stderr).strip().splitlines()[-LAST_LINES:]
        raise ServiceError(
            f"aiperf ended with exit code {done.returncode}.",
            why="\n".join(lines),
            hint="Measure with ew's own clients: --tool own",
            code="aiperf_failed",
        )
    return level_of(json.loads(export.read_text(encoding="utf-8")), concurrency)
