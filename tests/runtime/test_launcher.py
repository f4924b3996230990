"""The launcher file `ew` itself: which parts it makes ready, and an interrupt before it has begun."""

from __future__ import annotations

import runpy
import subprocess
import sys

import pytest

from common.paths import SOURCE_ROOT

LAUNCHER = SOURCE_ROOT / "ew"
INTERRUPTED_IMPORT = """
import runpy, sys

_, program, module = sys.argv

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == module:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.argv = [program, "status"]
runpy.run_path(program, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], ("base",)),
        (["start", "test"], ("base",)),
        (["test"], ("base", "dev")),
        (["test", "tests/cli", "-k", "x"], ("base", "dev")),
        (["test", "--help"], ("base",)),
        (["test", "-h"], ("base",)),
    ],
)
def test_the_test_tools_are_installed_for_tests_only(arguments: list[str], wanted: tuple[str, ...]) -> None:
    assert runpy.run_path(str(LAUNCHER))["layers"](arguments) == wanted


@pytest.mark.parametrize(
    ("program", "module"), [(LAUNCHER, "runtime.bootstrap"), (SOURCE_ROOT / "cli" / "__main__.py", "cli.app")]
)
def test_an_interrupt_while_modules_are_read_shows_no_traceback(program: object, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, str(program), module], capture_output=True, text=True
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
