"""Versions of a model side by side: `version` and `older_versions` of deploy/config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builder.lint import lint
from builder.render import render
from common.config import parse_config
from common.errors import ConfigError
from common.paths import Home
from tests.builder.rendering import config_of, rendered, snapshot
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

SERVED = ("m-preprocessing", "m-tensorrt_llm", "m-postprocessing", "m-tensorrt_llm_bls")
UPGRADED = {"model_path": "models/new", "version": 2, "older_versions": {"1": "models/m"}}


@pytest.fixture
def home(home: Home) -> Home:
    make_package(home.root / "models" / "new", byte_level(), generation={"eos_token_id": [7]})
    return home


def versions_of(home: Home, folder: str) -> set[str]:
    return {path.name for path in (home.repository / folder).iterdir() if path.is_dir()}


def package_of(home: Home, version: str) -> str:
    folder = home.repository / "m-tensorrt_llm" / version
    document = json.loads((folder / "worker.json").read_text())
    return Path(folder, document["package"]).resolve().name


def test_a_new_version_is_served_beside_the_old_one(home: Home) -> None:
    render(config_of(m={}), home)
    before = snapshot(home.repository)
    report = render(config_of(m=UPGRADED), home)
    for folder in SERVED:
        assert versions_of(home, folder) == {"1", "2"}
        policy = rendered(home, kind=folder.removeprefix("m-")).version_policy
        assert list(policy.specific.versions) == [1, 2]
    assert [package_of(home, version) for version in "12"] == ["m", "new"]
    assert versions_of(home, "m") == {"2"}
    kept = {name for name in before if "/1/" in name and "/m/1/" not in name}
    assert kept and all(snapshot(home.repository)[name] == before[name] for name in kept)
    assert report.removed == ["m/1/.keep"]
    assert lint(home.repository) == []


def test_an_old_version_goes_and_the_policy_with_it(home: Home) -> None:
    render(config_of(m=UPGRADED), home)
    without = {**UPGRADED, "older_versions": {}}
    plan = render(config_of(m=without), home, dry_run=True, with_diff=True)
    assert "-version_policy: { specific: { versions: [ 1, 2 ] } }" in plan.diff
    report = render(config_of(m=without), home)
    assert {tuple(name.split("/")[:2]) for name in report.removed} == {(name, "1") for name in SERVED}
    for folder in SERVED:
        assert versions_of(home, folder) == {"2"}
    assert not rendered(home).HasField("version_policy")
    assert lint(home.repository) == []


def test_a_new_package_can_replace_a_version_at_once(home: Home) -> None:
    render(config_of(m={}), home)
    report = render(config_of(m={"model_path": "models/new"}), home)
    assert "m-tensorrt_llm/1/worker.json" in report.written
    assert package_of(home, "1") == "new"


@pytest.mark.parametrize(
    "entry",
    [{"older_versions": {"1": "models/m"}}, {"version": 3, "older_versions": {"4": "models/m"}}],
)
def test_older_versions_have_lower_numbers(entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"models": {"m": {"engine": "cpu", "model_path": "models/new", **entry}}})
    assert "lower than version" in caught.value.what


def test_nvidias_backend_cannot_have_two_engines_in_one_model(home: Home) -> None:
    for name in ("m", "new"):
        make_package(home.root / "models" / name, byte_level(), engine="built")
    with pytest.raises(ConfigError) as caught:
        render(config_of(m={**UPGRADED, "engine": "cuda-trt"}), home)
    assert caught.value.code == "engine_versions"
