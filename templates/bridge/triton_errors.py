"""Refusals as Triton's errors."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb
from protocol import Status

# By name: Triton adds its classes to the module only after it has imported the model.
CODES = {
    Status.INVALID: "INVALID_ARG",
    Status.UNSUPPORTED: "UNSUPPORTED",
    Status.UNAVAILABLE: "UNAVAILABLE",
    Status.INTERNAL: "INTERNAL",
}


def triton_error(status: Status, message: str) -> Any:
    return pb.TritonError(message, getattr(pb.TritonError, CODES[status]))


def cancelled() -> Any:
    return pb.TritonError("The client has gone.", pb.TritonError.CANCELLED)
