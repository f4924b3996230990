"""`ew render` on the command line: output forms, exit codes, hand edits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.paths import SOURCE_ROOT
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_package(tmp_path / "models" / "m", byte_level())
    config = tmp_path / "deploy" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"models": {"m": {"engine": "cpu", "model_path": "models/m"}}}))
    return tmp_path


def render(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), "render", *options]
    environment = {**os.environ, "EW_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_render_twice_then_edit(home: Path) -> None:
    shown = render(home, "--diff")
    assert (shown.returncode, (home / "model_repository").exists()) == (0, False)
    assert "+++ m-tensorrt_llm/config.pbtxt" in shown.stdout
    first = render(home)
    assert first.returncode == 0
    assert "written    m/config.pbtxt" in first.stdout
    document = json.loads(render(home, "--json").stdout)
    assert (document["written"], document["removed"], document["models"]) == ([], [], ["m"])
    assert render(home, "--diff").stdout == "No changes.\n"
    edited = home / "model_repository" / "m" / "config.pbtxt"
    edited.write_text(edited.read_text() + "\n# mine\n")
    refused = render(home, "--json")
    assert refused.returncode == 4
    assert json.loads(refused.stdout)["error"]["code"] == "hand_edited"
    assert render(home, "--force").returncode == 0


@pytest.mark.parametrize(("layout", "folders"), [("llmapi", 1), ("upstream", 5)])
def test_layouts_for_existing_clients(home: Path, layout: str, folders: int) -> None:
    done = render(home, "--layout", layout, "--output", str(home / "srv"))
    assert done.returncode == 0, done.stderr
    assert "written    tensorrt_llm/config.pbtxt" in done.stdout
    assert len([path for path in (home / "srv").iterdir() if path.is_dir()]) == folders


def test_a_folder_of_other_things_gets_no_models(home: Path) -> None:
    for name in ("lost+found", ".hidden"):
        (home / "volume" / name).mkdir(parents=True)
    assert render(home, "--output", str(home / "volume")).returncode == 0
    (home / "docs").mkdir()
    (home / "docs" / "page.md").write_text("text")
    refused = render(home, "--output", str(home / "docs"), "--json")
    assert (refused.returncode, json.loads(refused.stdout)["error"]["code"]) == (4, "not_a_repository")
    assert [path.name for path in (home / "docs").iterdir()] == ["page.md"]
    (home / "docs" / "theirs" / "1").mkdir(parents=True)
    assert render(home, "--output", str(home / "docs")).returncode == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model", "n"], 2, "no model 'n'"),
        (["--config", "nowhere.json"], 3, "no config file nowhere.json"),
        (["--layout", "other"], 2, "'other' is not one of"),
    ],
)
def test_bad_options(home: Path, options: list[str], code: int, message: str) -> None:
    done = render(home, *options)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
