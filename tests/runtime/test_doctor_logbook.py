"""Every known line has its finding, also in other wordings and numbers; a clean log has none."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from runtime.doctor import logbook

DATA = Path(__file__).parent / "data"
EXCERPTS = json.loads((DATA / "log_excerpts.json").read_text(encoding="utf-8"))
CLEAN = (DATA / "clean_triton.log").read_text(encoding="utf-8").splitlines()
UNSEEN = json.loads((DATA / "unseen_logs.json").read_text(encoding="utf-8"))
LINES = [*EXCERPTS["known"], *EXCERPTS["unseen"]]


@pytest.mark.parametrize("excerpt", LINES, ids=lambda excerpt: excerpt["id"])
def test_a_line_has_its_finding(excerpt: dict[str, str]) -> None:
    signature = logbook.first_fit(excerpt["line"])
    assert signature is not None
    assert signature.id == excerpt["id"]


@pytest.mark.parametrize("excerpt", LINES, ids=lambda excerpt: excerpt["id"])
def test_numbers_names_and_log_prefixes_do_not_matter(excerpt: dict[str, str]) -> None:
    chance = random.Random(excerpt["line"])
    # Codes are part of a message: an exit status, a file of a major version, a JSON error class.
    kept = r"(?:-9|code \d+|so\.\d+|Errno \d+|Code \d+|: \d+>|Signal \(\d+\))"
    parts = re.split(f"({kept})", excerpt["line"])
    varied = "".join(
        part
        if re.fullmatch(kept, part)
        else re.sub(r"(?<![a-zA-Z_])\d{2,}", lambda _: str(chance.randint(10, 99999)), part)
        for part in parts
    )
    prefixed = f"\x1b[31m2026-03-04T05:06:07Z triton-1  | {varied}\x1b[0m"
    findings = logbook.explain([*CLEAN, prefixed])
    assert [finding.id for finding in findings] == [excerpt["id"]]


@pytest.mark.parametrize("log", [*UNSEEN["first"], *UNSEEN["second"]], ids=lambda log: log["about"])
def test_the_first_finding_of_a_whole_log_is_its_cause(log: dict[str, Any]) -> None:
    findings = logbook.explain(log["lines"])
    assert [finding.id for finding in findings][:1] == [log["expected"]]


def test_an_error_goes_before_a_warning_that_came_earlier() -> None:
    log = [
        "[TensorRT-LLM][WARNING] Requested amount of GPU memory (8 bytes) could not be allocated.",
        "E0101 something.cc:1] Socket '0.0.0.0:8000' already in use",
    ]
    assert [finding.id for finding in logbook.explain(log)] == ["port_in_use", "cuda_oom_engine"]


def test_what_tensorrt_llm_says_of_every_empty_option_is_no_finding() -> None:
    line = "[TensorRT-LLM][WARNING] [json.exception.type_error.302] type must be number, but is null"
    assert logbook.explain([line]) == []
    error = "unexpected error when creating modelInstanceState: [json.exception.type_error.302] bad type"
    assert [finding.id for finding in logbook.explain([error])] == ["engine_config_json"]


def test_a_clean_log_of_the_real_server_has_no_findings() -> None:
    assert len(CLEAN) > 30
    assert logbook.explain(CLEAN) == []


def test_every_signature_says_what_to_do() -> None:
    for signature in logbook.signatures():
        assert signature.patterns, signature.id
        assert signature.cause.endswith("."), signature.id
        assert signature.fix.endswith((".", ")")), signature.id


def test_ids_are_unique_and_stable_in_form() -> None:
    ids = [signature.id for signature in logbook.signatures()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z0-9_]+", id) for id in ids)


def test_causes_come_before_their_consequences() -> None:
    log = [
        "Poll failed for model directory 'ensemble': failed to read text proto from /m/config.pbtxt",
        "Error parsing text-format inference.ModelConfig: 29:17: Expected integer, got: $",
        "error: creating server: Internal - failed to load all models",
    ]
    findings = logbook.explain(log, "triton.log")
    assert [finding.id for finding in findings] == [
        "pbtxt_unfilled_integer",
        "pbtxt_poll_failed",
        "model_load_failed",
    ]
    assert [finding.severity for finding in findings] == ["error", "info", "info"]
    assert findings[0].where == "triton.log:2"


def test_a_consequence_alone_is_an_error_and_unknown_errors_are_shown() -> None:
    findings = logbook.explain(
        [
            "E0101 something.cc:1] a fault that nobody has seen",
            "error: creating server: Internal - failed to load all models",
        ]
    )
    assert [finding.id for finding in findings] == ["log_unknown_error", "model_load_failed"]
    assert findings[1].severity == "error"
    assert "nobody has seen" in findings[0].evidence


def test_repeated_lines_are_one_finding_with_a_count() -> None:
    lines = [f"Prompt length ({n}) exceeds maximum input length (16)" for n in range(20, 70)]
    (finding,) = logbook.explain(lines)
    assert finding.count == 50


def test_large_logs_are_read_at_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logbook, "HEAD_BYTES", 1000)
    monkeypatch.setattr(logbook, "TAIL_BYTES", 1000)
    path = tmp_path / "triton.log"
    path.write_text("Address already in use\n" + "fine\n" * 5000 + "No space left on device\n")
    assert {finding.id for finding in logbook.explain_file(path)} == {"port_in_use", "disk_full"}


def test_a_missing_log_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        logbook.explain_file(tmp_path / "none.log")
    assert caught.value.code == "log_unreadable"


def test_binary_noise_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(bytes(range(256)) * 2000)
    assert logbook.explain_file(path) == []
