"""Entry point that the launcher runs inside the base environment."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cli.app import main  # noqa: E402  (the path must be set first)

if __name__ == "__main__":
    main(prog_name="ew")
