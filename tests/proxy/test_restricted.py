"""The header of a restricted tritonserver: read from a private file, sent with every request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from proxy.restricted import read_header
from tests.proxy.stack import MODEL


def write(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "header"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


async def test_every_request_carries_it(make_stack: Callable[..., Any], tmp_path: Path) -> None:
    async with make_stack(triton_header_file=write(tmp_path, "ew-token: s3cret\n")) as stack:
        stack.script("x", pace=0.05)
        await stack.events()
        await stack.post(f"/api/v1/models/{MODEL}/unload", b"")
        await stack.get("/health/ready")
    assert len(stack.triton.headers) > 4
    assert {headers.get("ew-token") for headers in stack.triton.headers} == {"s3cret"}


def test_without_a_file_there_is_no_header() -> None:
    assert read_header(None) == b""


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("ew-token: s3cret", 0o644, "other users"),
        ("s3cret", 0o600, "does not hold a header"),
        ("a: b\nc: d", 0o600, "does not hold a header"),
        ("", 0o600, "does not hold a header"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, mode: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_header(write(tmp_path, text, mode))
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        read_header(str(tmp_path / "nothing"))
