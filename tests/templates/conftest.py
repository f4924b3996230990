"""The rendered Python models import what lies beside them; here it lies in three folders."""

from __future__ import annotations

import sys

from common.paths import SOURCE_ROOT

for folder in ("shared", "preprocessing", "postprocessing"):
    path = str(SOURCE_ROOT / "templates" / folder)
    if path not in sys.path:
        sys.path.append(path)
