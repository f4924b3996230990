"""Programs that tests run and that are not Python packages."""

from __future__ import annotations

import os
import shutil

import pytest

REQUIRED = "EW_TEST_TOOLS"


def tool(name: str, package: str) -> str:
    """Its path. Without it a test is skipped, or fails where EW_TEST_TOOLS=required is set, as in CI."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        message = f"{name} is not here: apt-get install {package}"
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(message)
        pytest.skip(message)
    return found
