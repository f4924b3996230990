"""The header that a tritonserver with `--http-restricted-api` asks for: nobody walks around the proxy."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from common.errors import ConfigError

HEADER = re.compile(r"[A-Za-z0-9-]{1,64}: [\x21-\x7e]{1,512}")


def read_header(path: str | None) -> bytes:
    """The line `NAME: VALUE` of the file, as a line of a request; nothing without a file.

    Raises:
        ConfigError: the file is not there, holds something else, or can be read by other users.
    """
    if path is None:
        return b""
    try:
        mode = Path(path).stat().st_mode
        line = Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", code="triton_header_unreadable") from None
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(
            f"{path} can be read by other users.", hint=f"chmod 600 {path}", code="triton_header_open"
        )
    if not HEADER.fullmatch(line):
        raise ConfigError(
            f"{path} does not hold a header.",
            hint="Write one line, NAME: VALUE, as in --http-restricted-api=...:NAME=VALUE.",
            code="triton_header_invalid",
        )
    return f"{line}\r\n".encode("ascii")
