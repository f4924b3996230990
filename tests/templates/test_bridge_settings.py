"""The bridge's settings, read as in Triton's stub, where file names are ASCII to Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from common.paths import SOURCE_ROOT

READ = """
import os
import sys
from bridge_settings import read_settings
assert sys.getfilesystemencoding() == "ascii"
arguments = {"model_name": "m", "model_repository": sys.argv[1], "model_version": "1"}
settings = read_settings(arguments, {})
shown = settings.command(3)
sys.stdout.buffer.write(b"\\0".join(os.fsencode(part) for part in shown))
"""


def test_a_package_in_a_folder_with_a_chinese_name_is_served(tmp_path: Path) -> None:
    package = tmp_path / "模型" / "通义"
    (package / "checkpoint").mkdir(parents=True)
    version = tmp_path / "model_repository" / "m" / "1"
    version.mkdir(parents=True)
    document = {"package": str(package), "root": str(SOURCE_ROOT)}
    (version / "worker.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", READ, str(version.parent)],
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        cwd=SOURCE_ROOT / "templates" / "bridge",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    command = done.stdout.decode("utf-8").split("\0")
    assert command[command.index("--package") + 1] == str(package)
