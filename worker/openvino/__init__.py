"""The cpu engine: graphs for OpenVINO and the adapter that serves them."""

from __future__ import annotations

import sys

# OpenVINO reports usage through this module where it can import it; nothing here is reported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
