"""Render's writes: atomic and repeatable, hand edits kept, models that come and go."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from builder import pbtxt
from builder.render import RenderReport, render
from builder.repository_changes import RECORD_NAME
from common.errors import ConfigError, PackageError, RepositoryError, ResourceError, UsageError
from common.paths import Home
from tests.builder.rendering import KINDS, config_of, rendered, snapshot
from tests.packages import make_package


def test_same_input_same_bytes_and_times(home: Home) -> None:
    first = render(config_of(m={}), home)
    before = snapshot(home.repository)
    second = render(config_of(m={}), home)
    assert (second.written, second.removed) == ([], [])
    assert second.unchanged == first.written
    assert snapshot(home.repository) == before
    shutil.rmtree(home.repository)
    render(config_of(m={}), home)
    assert {name: data for name, (data, _) in snapshot(home.repository).items()} == {
        name: data for name, (data, _) in before.items()
    }


def test_only_changed_files_are_written(home: Home) -> None:
    render(config_of(m={}), home)
    before = snapshot(home.repository)
    report = render(config_of(m={"triton": {"max_queue_size": 9}}), home)
    assert report.written == ["m-preprocessing/config.pbtxt", "m-tensorrt_llm/config.pbtxt"]
    after = snapshot(home.repository)
    changed = {name for name in after if after[name] != before[name]}
    names = [*report.written, RECORD_NAME]
    assert changed == {str(home.repository / name) for name in names}


def test_models_come_and_go_and_others_stay(home: Home) -> None:
    mine = home.repository / "my-own-model" / "config.pbtxt"
    mine.parent.mkdir(parents=True)
    mine.write_text('name: "my-own-model"')
    render(config_of(m={}, second={}), home)
    cache = home.repository / "second-preprocessing" / "1" / "__pycache__" / "model.pyc"
    cache.parent.mkdir()
    cache.write_text("x")
    report = render(config_of(m={}), home)
    assert {name.split("/")[0] for name in report.removed} == {
        "second",
        *(f"second-{kind}" for kind in KINDS[1:]),
    }
    assert sorted(path.name for path in home.repository.iterdir() if path.is_dir()) == sorted(
        ["m", *(f"m-{kind}" for kind in KINDS[1:]), "my-own-model"]
    )


def test_only_leaves_other_models_alone(home: Home) -> None:
    render(config_of(m={}, second={}), home)
    report = render(config_of(m={"max_batch_size": 2}), home, only=["m"])
    assert report.removed == []
    assert (home.repository / "second" / "config.pbtxt").exists()
    assert rendered(home).max_batch_size == 2
    assert render(config_of(m={"max_batch_size": 2}, second={}), home).written == []


def test_hand_edits_are_never_lost_silently(home: Home) -> None:
    render(config_of(m={}), home)
    path = home.repository / "m-tensorrt_llm" / "config.pbtxt"
    path.write_text(path.read_text() + "# mine\n")
    for config in (config_of(m={}), config_of(m={"max_batch_size": 2}), config_of()):
        with pytest.raises(RepositoryError) as caught:
            render(config, home)
        assert caught.value.code == "hand_edited"
        assert str(path) in caught.value.what
        assert path.read_text().endswith("# mine\n")
    assert "-# mine" in render(config_of(m={}), home, dry_run=True, with_diff=True).diff
    assert render(config_of(m={}), home, force=True).written == ["m-tensorrt_llm/config.pbtxt"]
    assert "# mine" not in path.read_text()


def test_a_foreign_file_in_the_way_is_kept(home: Home) -> None:
    path = home.repository / "m" / "config.pbtxt"
    path.parent.mkdir(parents=True)
    path.write_text('name: "m"')
    with pytest.raises(RepositoryError):
        render(config_of(m={}), home)
    assert path.read_text() == 'name: "m"'
    assert sorted(entry.name for entry in home.repository.iterdir()) == ["m"]


def test_dry_run_changes_nothing(home: Home) -> None:
    report = render(config_of(m={}), home, dry_run=True, with_diff=True)
    assert "+++ m-tensorrt_llm/config.pbtxt" in report.diff
    assert report.written
    assert not home.repository.exists()


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Make the `call`th os.<name> fail as on a full disk."""
    original, seen = getattr(os, name), []

    def failing(*args: Any) -> Any:
        seen.append(args)
        if len(seen) == call:
            raise OSError(28, "No space left on device", str(args[0]))
        return original(*args)

    monkeypatch.setattr(os, name, failing)


def test_a_full_disk_while_staging_leaves_the_old_repository(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    render(config_of(m={}), home)
    before = snapshot(home.repository)
    with monkeypatch.context() as patch:
        fail_at(patch, "fsync", 3)
        with pytest.raises(ResourceError) as caught:
            render(config_of(m={"max_batch_size": 2}, second={}), home)
    assert caught.value.code == "disk_full"
    assert snapshot(home.repository) == before
    assert [path.name for path in home.root.iterdir() if "staging" in path.name] == []


@pytest.mark.parametrize("call", range(1, 8))
def test_an_interrupted_swap_is_finished_by_the_next_render(
    home: Home, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    render(config_of(m={}), home)
    with monkeypatch.context() as patch:
        fail_at(patch, "replace", call)
        with contextlib.suppress(ResourceError):
            render(config_of(m={"max_batch_size": 2, "triton": {"skip_special_tokens": False}}), home)
    render(config_of(m={"max_batch_size": 3}), home)
    assert {rendered(home, kind=kind).max_batch_size for kind in KINDS} == {3}
    assert render(config_of(m={"max_batch_size": 3}), home).written == []


def test_a_template_error_writes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(pbtxt.TEMPLATES, templates)
    for text, code in (("{{ no_such }}", "template_invalid"), ("max_batch_size: x", "pbtxt_invalid")):
        (templates / "postprocessing" / "config.pbtxt.j2").write_text(text)
        monkeypatch.setattr(pbtxt, "TEMPLATES", templates)
        pbtxt.template_environment.cache_clear()
        with pytest.raises(RepositoryError) as caught:
            render(config_of(m={}), home)
        assert caught.value.code == code
        assert not home.repository.exists()
    monkeypatch.undo()
    pbtxt.template_environment.cache_clear()


@pytest.mark.parametrize(
    ("config", "only", "error", "code"),
    [
        ({"m": {}, "m-tensorrt_llm": {}}, None, ConfigError, "model_id_clash"),
        ({"m": {}}, ["n"], UsageError, "unknown_model"),
        ({"m": {"model_path": "nowhere"}}, None, PackageError, "package_missing"),
    ],
)
def test_what_cannot_be_rendered_is_refused(
    home: Home, config: dict[str, Any], only: list[str] | None, error: type[Exception], code: str
) -> None:
    with pytest.raises(error) as caught:
        render(config_of(**config), home, only=only)
    assert getattr(caught.value, "code", None) == code
    assert not home.repository.exists()


def test_a_package_without_tokenizer_json_is_refused(home: Home) -> None:
    make_package(home.root / "models" / "bare")
    with pytest.raises(PackageError) as caught:
        render(config_of(m={"model_path": "models/bare"}), home)
    assert caught.value.code == "tokenizer_missing"


def test_a_record_that_points_outside_is_refused(home: Home) -> None:
    render(config_of(m={}), home)
    (home.repository / RECORD_NAME).write_text('{"format": 1, "models": {"x": {"../../victim": ["0"]}}}')
    victim = home.root / "victim"
    victim.write_text("mine")
    with pytest.raises(RepositoryError) as caught:
        render(config_of(m={}), home)
    assert caught.value.code == "record_invalid"
    assert victim.exists()


def test_a_lost_record_is_made_again(home: Home) -> None:
    render(config_of(m={}), home)
    (home.repository / RECORD_NAME).unlink()
    render(config_of(m={}), home)
    report: RenderReport = render(config_of(m={"max_batch_size": 2}), home)
    assert report.written


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_folder_that_may_not_be_read_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    def refuse(path: Path) -> None:  # root may read every folder
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    home.repository.mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ResourceError, match=r"cannot be read\. Permission denied\.") as caught:
        render(config_of(m={}), home, dry_run=dry_run)
    assert caught.value.code == "not_readable"
