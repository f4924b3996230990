"""bench with aiperf: what it is told and how its figures are read. A script that records stands for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ServiceError
from runtime import aiperf
from runtime.client import KEY_VARIABLE, Endpoint
from runtime.loadtest import LoadRequest

EXPORT = Path(__file__).parent / "data" / "aiperf_export.json"
ENDPOINT = Endpoint("http", "127.0.0.1", 8080, "ew-secret-key")
REQUEST = LoadRequest("tiny", concurrency=(2, 1), input_len=32, output_len=8)
SCRIPT = f"""#!/bin/sh
echo "$*" >> "$RECORD"
echo "key=${KEY_VARIABLE}" >> "$RECORD"
while [ "$1" != --config ]; do shift; done
/bin/cat "$2" >> "$RECORD"
/bin/cp {EXPORT} "$(/usr/bin/dirname "$2")/profile_export_aiperf.json"
exit "${{CODE:-0}}"
"""


@pytest.fixture
def record(ew_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    program = ew_home / "bin" / "aiperf"
    program.parent.mkdir()
    program.write_text(SCRIPT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("RECORD", str(ew_home / "record"))
    yield ew_home / "record"


def test_every_level_is_measured_and_the_key_stays_out_of_argv_and_files(record: Path) -> None:
    levels = aiperf.run(ENDPOINT, REQUEST)
    assert [level.concurrency for level in levels] == [1, 2]
    lines = record.read_text().splitlines()
    assert "key=ew-secret-key" in lines
    assert len([line for line in lines if "ew-secret-key" in line]) == 2, "in the environment, nowhere else"
    assert lines[0].startswith("profile --config ")


def test_its_configuration_asks_for_the_same_load(ew_home: Path) -> None:
    document = aiperf.configuration(ENDPOINT, REQUEST, 2, ew_home)["benchmark"]
    assert document["dataset"]["prompts"] == {"isl": 32, "osl": 8}
    assert document["phases"] == {"type": "concurrency", "concurrency": 2, "requests": 8}
    assert document["endpoint"]["api_key"] == f"${{{KEY_VARIABLE}}}"
    assert document["tokenizer"]["name"] == "builtin"


def test_the_packages_own_tokenizer_is_used(ew_home: Path) -> None:
    (ew_home / "deploy").mkdir()
    (ew_home / "models" / "tiny" / "tokenizer").mkdir(parents=True)
    entry = {"engine": "cpu", "model_path": "models/tiny"}
    (ew_home / "deploy" / "config.json").write_text(json.dumps({"models": {"tiny": entry}}))
    assert aiperf.tokenizer_of("tiny") == str(ew_home / "models" / "tiny" / "tokenizer")
    assert aiperf.tokenizer_of("other") == "builtin"


def test_figures_of_a_real_export_are_read() -> None:
    level = aiperf.level_of(json.loads(EXPORT.read_text()), 2)
    assert (level.requests, level.failed) == (4, 0)
    assert level.ttft_p50 == 1356.18
    assert level.itl_p99 == 868.14
    assert level.tpot_mean == 262.88
    assert level.tokens_per_second == 4.79
    assert (level.input_tokens, level.output_tokens) == (32.0, 8.0)


def test_a_failure_shows_its_last_lines(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE", "3")
    with pytest.raises(ServiceError, match="exit code 3"):
        aiperf.run(ENDPOINT, REQUEST)
