"""Guided decoding: guides in the engine's form, and a check of each before the engine sees it.

A guide that its grammar compiler refuses fails the engine's whole step, and some make the compiler loop or
overflow the stack. So each is first tried in a process of its own (`guide_check`), which may be lost.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino_genai as genai

from worker.openvino.schemas import ANY_OBJECT, schema_grammar
from worker.protocol import Sampling, Status
from worker.validate import RequestRefused

SOURCE_ROOT = Path(__file__).resolve().parent.parent.parent
CHECK_FOLDER = "guide_check"
OUT_OF_TIME = (-signal.SIGPROF, -signal.SIGALRM)


@dataclass(frozen=True)
class Problem:
    """Why a guide is not run."""

    status: Status
    code: str
    message: str


def structured_output(guide_type: str, guide: str | None) -> Any:
    """The engine's form of a guide that `worker.validate` has let through.

    Raises:
        RequestRefused: a JSON schema that answers would not be held to.
    """
    if guide_type == "json":
        return genai.StructuredOutputConfig(grammar=ANY_OBJECT)
    if guide_type == "json_schema":
        return genai.StructuredOutputConfig(grammar=schema_grammar(json.loads(guide or "")))
    name = {"ebnf_grammar": "grammar"}.get(guide_type, guide_type)
    return genai.StructuredOutputConfig(**{name: guide})


def refuse_unless_alone(sampling: Sampling) -> None:
    """The engine bars tokens by calling them end ids, which is also how it knows the end of a guide."""
    others = {
        "bad_words_list": sampling.bad_words,
        "embedding_bias": sampling.token_bias,
        "min_tokens": sampling.min_tokens,
    }
    for name, value in others.items():
        if sampling.guide_type is not None and value:
            raise RequestRefused(
                f"guided_decoding_guide_type does not go together with {name} in this engine.",
                status=Status.UNSUPPORTED,
                code="guide_not_alone",
            )


class GuideChecker:
    """Tries guides one after the other in a process that starts with the first and is replaced when lost."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / CHECK_FOLDER
        self._thread = ThreadPoolExecutor(1, "guide")
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, sampling: Sampling) -> Future[Problem | None]:
        """None when the engine can run the guide of a request."""
        fields = {"type": sampling.guide_type, "guide": sampling.guide, "end_id": sampling.end_id}
        return self._thread.submit(self._ask, json.dumps(fields).encode() + b"\n")

    def close(self) -> None:
        """Wait for the guide that is being tried, and end the process."""
        self._thread.shutdown(cancel_futures=True)
        if self._process is not None:
            self._process.communicate()

    def _ask(self, question: bytes) -> Problem | None:
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            self._process = None
            process.communicate()
            return _lost(process.returncode)
        problem = json.loads(answer)["problem"]
        return (
            Problem(Status.INVALID, "guide_invalid", f"guided_decoding_guide: {problem}") if problem else None
        )

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "worker.openvino.guide_check", str(self._folder)],
            cwd=SOURCE_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )


def _lost(status: int) -> Problem:
    if status in OUT_OF_TIME:
        return Problem(
            Status.INVALID,
            "guide_too_large",
            "guided_decoding_guide takes too long to compile; make it simpler.",
        )
    if status < 0:
        return Problem(
            Status.INVALID, "guide_too_large", "guided_decoding_guide is too much for the grammar compiler."
        )
    return Problem(
        Status.INTERNAL, "guide_check_failed", "The check of guides did not start; the worker's log says why."
    )
