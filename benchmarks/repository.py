"""Milliseconds to render and lint a repository of one model, and microseconds to decode a token.

    ./.venv/bin/python -m benchmarks.repository --package models/smollm2-135m-trt [--json FILE]

Imports are not counted. `min` is the fastest of --repeat runs: other work on the machine can only add to it.
`median` and `cpu`, the median of processor time, say how busy the machine was. `limit` is what the project
promises. Decoding streams one token a push, beside the tokenizers library's own
`DecodeStream`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from benchmarks import machine
from builder import pbtxt
from builder.lint import lint
from builder.render import render
from common.config import DeployConfig, parse_config
from common.detokenize import IncrementalDecoder, TokenTexts
from common.paths import Home

TEXT = "The capital of France is Paris, 你好，世界 👩‍👩‍👧‍👦 and so on.\n"
TEXT_REPEATS = 400
RENDER_LIMIT_MS, LINT_LIMIT_MS = 150.0, 300.0


def measure(action: Callable[[], object], repeat: int, *, limit_ms: float | None = None) -> dict[str, float]:
    """Wall and processor time of one call, in milliseconds."""
    walls, processors = [], []
    for _ in range(repeat):
        wall, processor = time.perf_counter(), time.process_time()
        action()
        walls.append((time.perf_counter() - wall) * 1e3)
        processors.append((time.process_time() - processor) * 1e3)
    figures = {"min_ms": min(walls), "median_ms": statistics.median(walls)}
    figures["cpu_ms"] = statistics.median(processors)
    limit = {} if limit_ms is None else {"limit_ms": limit_ms}
    return {**{name: round(figure, 1) for name, figure in figures.items()}, **limit}


def repository_figures(package: Path, repeat: int) -> dict[str, Any]:
    config = parse_config({"models": {"m": {"engine": "cpu", "model_path": str(package.resolve())}}})
    with tempfile.TemporaryDirectory() as folder:
        pbtxt.model_config_messages()
        homes = (Home(Path(folder, str(number))) for number in range(repeat))
        home = Home(Path(folder, "0"))
        return {
            "render, all files": measure(
                lambda: first_render(config, next(homes)), repeat, limit_ms=RENDER_LIMIT_MS
            ),
            "render, nothing changed": measure(lambda: first_render(config, home), repeat),
            "lint": measure(lambda: lint(home.repository), repeat, limit_ms=LINT_LIMIT_MS),
        }


def first_render(config: DeployConfig, home: Home) -> None:
    """A render as a new process does it: templates are compiled again."""
    pbtxt.template_environment.cache_clear()
    render(config, home)


def decoding_figures(package: Path, repeat: int) -> dict[str, float]:
    """Microseconds a token, for both decoders; both give the text back."""
    tokenizer = Tokenizer.from_file(str(package / "tokenizer" / "tokenizer.json"))
    ids = tokenizer.encode(TEXT * TEXT_REPEATS, add_special_tokens=False).ids
    texts = TokenTexts(tokenizer)

    def ours() -> str:
        decoder = IncrementalDecoder(texts)
        return "".join(decoder.push((token,)) for token in ids)

    def library() -> str:
        stream = DecodeStream(skip_special_tokens=True)
        return "".join(stream.step(tokenizer, token) or "" for token in ids)

    assert ours() == library() == TEXT * TEXT_REPEATS
    named = {"IncrementalDecoder": ours, "tokenizers.DecodeStream": library}
    return {
        name: round(measure(decode, repeat)["cpu_ms"] * 1e3 / len(ids), 2) for name, decode in named.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = {
        "machine": machine.describe(),
        "repository": repository_figures(options.package, options.repeat),
        "decoding_us_per_token": decoding_figures(options.package, options.repeat),
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
