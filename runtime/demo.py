"""The demo: checkpoint -> package -> config -> service -> a streamed answer, by the verbs' own functions."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from builder.package import load_package
from common.config import DeployConfig, load_config
from common.errors import EngineError, PackageError
from common.paths import home
from runtime import client, lifecycle, state
from runtime.asking import snake_case
from runtime.demo_checkpoint import demo_checkpoint
from runtime.lifecycle import StartRequest
from runtime.models import entry_for, resolve_models, save_new_entries, set_entry
from runtime.state import Service

DEMO_MODEL = "smollm2-135m-trt"
DEFAULT_POSITIONS = 8192  # SmolLM2's; models with more are served with these
# The longest answer, in tokens: a model this small may never stop by itself, above all in Chinese.
DEMO_OUTPUT_LEN = 512
# f32, like transformers: the reference answers hold token for token, and 135 M weights are fast enough.
DEMO_PRECISION = "exact"
DOCUMENTED_PROMPT = "你好，请介绍一下自己"
DEFAULT_PROMPT = "What is the capital of France?"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """One streamed answer and its receipt. Times in seconds; TTFT is measured here, at the client."""

    prompt: str
    text: str
    ttft: float
    seconds: float
    events: int
    finish_reason: str
    usage: dict[str, Any]
    timings: dict[str, Any]

    @property
    def tokens(self) -> int:
        return int(self.usage.get("completionTokens", 0))

    @property
    def tokens_per_second(self) -> float:
        """Of the stream after its first token."""
        rest = self.seconds - self.ttft
        return (self.tokens - 1) / rest if self.tokens > 1 and rest > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        figures = {"usage": snake_case(self.usage), "timings": snake_case(self.timings)}
        speed = round(self.tokens_per_second, 1)
        return {**vars(self), **figures, "tokens": self.tokens, "tokens_per_second": speed}


def ensure_model(name: str | None, progress: Progress) -> str:
    """The id in deploy/config.json of what the demo runs, after converting it where that is needed.

    `name` is an id of the config, a package, a Hugging Face folder or a hub id; None is the demo's own.
    """
    if name is None or name == DEMO_MODEL:
        return _demo_model(progress)
    folder = Path(name).expanduser()
    if name in _config().models or (folder.is_dir() and _package_state(folder) == "valid"):
        config, ids = resolve_models([name], "cpu")
        save_new_entries(config, ids)
        return ids[0]
    return _converted(name, progress)


def ensure_service(model: str, port: int, progress: Progress) -> Service:
    """The service that runs `model`: the one that is up, else a new one."""
    running = state.load()
    if running is not None and running.health() in ("ready", "degraded") and _serves(running, model):
        return running
    return lifecycle.start(StartRequest((model,), port=port), progress=progress)


def _serves(service: Service, model: str) -> bool:
    server = service.server_of(model)
    return server is not None and server.alive


def ask(service: Service, model: str, prompt: str, show: Callable[[str], None]) -> Answer:
    """Stream one greedy answer; `show` gets each piece of text as it comes.

    Raises:
        EngineError: the stream held no text.
    """
    began = time.monotonic()
    texts: list[str] = []
    ttft = 0.0
    event: dict[str, Any] = {}
    for event in client.stream(service, {"modelId": model, "prompt": prompt, "temperature": 0}):
        if event["text"]:
            ttft = ttft or time.monotonic() - began
            texts.append(event["text"])
            show(event["text"])
    seconds = time.monotonic() - began
    if not "".join(texts).strip():
        raise EngineError("The model answered without any text.", hint="Look with ./ew logs worker.")
    receipt = (event["finishReason"], event["usage"], event["timings"])
    return Answer(prompt, "".join(texts), ttft, seconds, len(texts), *receipt)


def curl_line(service: Service, model: str) -> str:
    """The documented call, with the key read from its file: it can be pasted as it is."""
    return (
        f'curl -N -X POST {service.url}{client.PATH} -H "Content-Type: application/json" '
        f'-H "X-API-Key: $(cat {shlex.quote(service.key_file)})" '
        f'-d \'{{"modelId": "{model}", "prompt": "{DOCUMENTED_PROMPT}"}}\''
    )


def _demo_model(progress: Progress) -> str:
    folder = home().models / DEMO_MODEL
    if (found := _package_state(folder)) != "valid":
        source = demo_checkpoint(progress)
        _convert(str(source), folder, progress, force=found == "damaged")
    if DEMO_MODEL not in _config().models:
        set_entry(DEMO_MODEL, entry_for(load_package(folder), "cpu", precision=DEMO_PRECISION))
    return DEMO_MODEL


def _converted(source: str, progress: Progress) -> str:
    """Convert a Hugging Face folder or hub model; a conversion that is there already is reused."""
    model_id = f"{Path(source).name.lower()}-trt"
    folder = home().models / model_id
    _convert(source, folder, progress)
    if model_id not in _config().models:
        set_entry(model_id, entry_for(load_package(folder), "cpu"))
    return model_id


def _convert(source: str, folder: Path, progress: Progress, *, force: bool = False) -> None:
    # Imported here: a demo that finds its package does not need the converter.
    from builder.convert import convert
    from builder.request import ConvertRequest

    progress(f"converting to {folder.name}")
    input_len, output_len = _lengths(Path(source).expanduser())
    convert(
        ConvertRequest(
            model=source,
            output=folder,
            max_input_len=input_len,
            max_output_len=output_len,
            stage="checkpoint",
            force=force,
        )
    )


def _lengths(source: Path) -> tuple[int, int]:
    """Longest prompt and answer, in tokens; together they fill the model's positions."""
    positions = DEFAULT_POSITIONS
    if (source / "config.json").is_file():
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        positions = min(positions, int(config.get("max_position_embeddings", positions)))
    output_len = min(DEMO_OUTPUT_LEN, positions // 4)
    return positions - output_len, output_len


def _package_state(folder: Path) -> Literal["valid", "absent", "damaged"]:
    try:
        load_package(folder)
    except PackageError as error:
        return "absent" if error.code in ("package_missing", "not_a_package") else "damaged"
    return "valid"


def _config() -> DeployConfig:
    return load_config(home().config) if home().config.exists() else DeployConfig()
