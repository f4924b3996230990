"""What the engines' adapters have in common: a running request, and options from the repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from common.errors import ConfigError
from worker.protocol import GenerationRequest
from worker.stopping import StopWords


class RunningRequest:
    """A request inside an engine; `scheduled_ns` is 0 until its first step."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.stop_words = StopWords(request.sampling.stop_words)
        self.scheduled_ns = 0


def given_options(options: type[Any], engine: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `document` that are set, as arguments of the dataclass `options`.

    Raises:
        ConfigError: an option that the dataclass has no field for.
    """
    known = {option.name for option in fields(options)}
    unknown = sorted(set(document) - known)
    if unknown:
        raise ConfigError(
            f"The {engine} engine has no option {unknown[0]!r}; it has {', '.join(sorted(known))}.",
            hint="Correct deploy/config.json and render the model repository again.",
            code="worker_options_invalid",
        )
    return {name: value for name, value in document.items() if value is not None}
