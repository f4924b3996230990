#!/usr/bin/env python3
"""The documented entry point: `python scripts/convert_trt.py --model ... --dtype float16`.

Standard library only: it hands over to the launcher, which brings its own environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

LAUNCHER = Path(__file__).resolve().parent.parent / "ew"

if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, str(LAUNCHER), "convert-trt", *sys.argv[1:]])
