"""`ew migrate --write`: the config keeps what it has, also when the rendering fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builder.lint.upstream import FILLED, write_engine, write_upstream
from tests.cli.ew import Answer, ew
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

MINE = {"engine": "cpu", "model_path": "models/mine", "max_batch_size": 3}


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    return write_upstream(
        tmp_path / "repo", FILLED, engine=write_engine(tmp_path / "engine"), tokenizer=tmp_path
    )


@pytest.fixture
def config(own_home: Path) -> Path:
    path = own_home / "deploy" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"models": {"llama": MINE}}))
    return path


def models(config: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.read_text())["models"]
    return found


def migrate(source: Path, model_id: str, *options: str) -> Answer:
    return ew("migrate", source, "--to", "engine", "--model", model_id, "--write", "--json", *options)


def test_an_entry_that_is_there_is_not_replaced(upstream: Path, config: Path) -> None:
    refused = migrate(upstream, "llama")
    assert (refused.code, refused.document["error"]["code"]) == (3, "model_id_taken")
    assert models(config) == {"llama": MINE}


def test_the_same_entry_may_be_written_twice(upstream: Path, config: Path) -> None:
    assert migrate(upstream, "other").code == 0
    assert migrate(upstream, "other").code == 0
    assert list(models(config)) == ["llama", "other"]


def test_an_id_that_no_config_may_have_is_refused_first(upstream: Path, config: Path) -> None:
    refused = migrate(upstream, "a name")
    assert (refused.code, refused.document["error"]["code"]) == (2, "model_id_invalid")


def test_what_ew_rendered_is_named_as_its_own(upstream: Path, config: Path, own_home: Path) -> None:
    make_package(own_home / "models" / "mine", byte_level())
    config.write_text(json.dumps({"models": {"llama": MINE}}))
    assert ew("render", "--model", "llama").code == 0
    source = own_home / "model_repository"
    told = ew("migrate", source, "--to", "engine", "--model", "again", "--json").document
    assert "was rendered by ew" in told["note"] and "as llama" in told["note"]
    assert told["convert"][3] == "CHECKPOINT"
    assert "Note: " in ew("migrate", source, "--to", "engine", "--model", "again").out
    assert ew("migrate", upstream, "--to", "engine", "--model", "other", "--json").document["note"] == ""


def test_where_rendering_fails_the_error_says_that_the_entry_stays(
    upstream: Path, config: Path, own_home: Path
) -> None:
    make_package(own_home / "models" / "other", byte_level())
    failed = migrate(upstream, "other")
    assert (failed.code, failed.document["error"]["code"]) == (4, "engine_pending")
    assert "The entry other is in" in failed.document["error"]["why"]
    assert "other" in models(config)


def test_an_error_without_a_cause_says_so_too(upstream: Path, config: Path, own_home: Path) -> None:
    make_package(own_home / "models" / "other", byte_level())
    (own_home / "model_repository").mkdir()
    (own_home / "model_repository" / "notes.md").write_text("mine")
    failed = migrate(upstream, "other")
    assert (failed.code, failed.document["error"]["code"]) == (4, "not_a_repository")
    assert failed.document["error"]["why"].startswith("The entry other is in")
