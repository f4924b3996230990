"""Mutations that need a built engine, a container's tag or an import: every rule has a mutated repository."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.render import render
from common.config import parse_config
from common.paths import Home
from tests.builder.lint.mutating import found, mutate
from tests.builder.lint.upstream import write_engine
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

CONFIG = "m-tensorrt_llm/config.pbtxt"
CODE = "m-preprocessing/1/model.py"
SERVER = {"trtllm_version": "1.2.1", "flavour": "trtllm"}
IMPORTS = {"import_with": sys.executable}
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one rendered engine of two ranks."""
    home = Home(tmp_path_factory.mktemp("good"))
    package = make_package(home.root / "m", byte_level(), engine="built")
    write_engine(package / "engine", ranks=2)
    entry = {"engine": "cuda-trt", "model_path": "m", "triton": {"gpu_device_ids": "0,1"}}
    render(parse_config({"models": {"m": entry}}), home)
    return home.root


@pytest.fixture
def home(good: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(good, tmp_path / "home"))
    mutate(copy / "model_repository" / CONFIG, str(good), str(copy))
    return copy


def engine_says(**changes: Any) -> Change:
    """Write other values into the engine's config.json."""

    def change(home: Path) -> None:
        path = home / "m" / "engine" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def configured(pattern: str, replacement: str, file: str = CONFIG) -> Change:
    return lambda home: mutate(home / "model_repository" / file, pattern, replacement)


ENGINE_MUTATIONS: list[tuple[str, str, dict[str, Any], Change]] = [
    ("EW306", CONFIG, {}, lambda home: (home / "m/engine/rank1.engine").unlink()),
    ("EW306", CONFIG, {}, lambda home: (home / "m/engine/config.json").unlink()),
    ("EW306", CONFIG, {}, lambda home: (home / "m/engine/config.json").write_text("{")),
    ("EW306", CONFIG, {}, lambda home: shutil.rmtree(home / "m/engine")),
    ("EW306", CONFIG, {}, configured(r"/m/engine", "/m/engines")),
    ("EW306", CONFIG, {}, engine_says(pretrained_config={"mapping": {"world_size": 4}})),
    ("EW307", CONFIG, {}, configured(r'"0,1"', '"0"')),
    ("EW307", CONFIG, {}, configured(r'"0,1"', '"0,1,2"')),
    ("EW307", CONFIG, {}, configured(r'"0,1"', '"0,1;2"')),
    ("EW308", CONFIG, SERVER, engine_says(version="1.1.0")),
    ("EW308", CONFIG, {"trtllm_version": "1.0.0"}, lambda home: None),
    ("EW315", CONFIG, {"flavour": "vllm"}, lambda home: None),
    ("EW315", CONFIG, {"flavour": ""}, lambda home: None),
    ("EW410", CODE, IMPORTS, configured(r"\Z", "int('x')\n", CODE)),
]


@pytest.mark.parametrize("options", [{}, SERVER, IMPORTS])
def test_the_good_repository_gives_nothing(home: Path, options: dict[str, Any]) -> None:
    assert found(home / "model_repository", **options) == set()


@pytest.mark.parametrize(("rule", "file", "options", "change"), ENGINE_MUTATIONS)
def test_mutation_is_found(home: Path, rule: str, file: str, options: dict[str, Any], change: Change) -> None:
    change(home)
    assert (rule, file) in found(home / "model_repository", **options)
