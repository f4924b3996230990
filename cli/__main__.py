"""Entry point that the launcher runs inside the base environment."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

if __name__ == "__main__":
    try:  # reading the modules takes a moment, in which an interrupt must not show a traceback
        from cli.app import main
        from cli.output import prepare_streams
    except KeyboardInterrupt:
        sys.exit(130)
    prepare_streams()
    main(prog_name="ew")
