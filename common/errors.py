"""The exception tree. Every error a user can meet is one of these.

    EwError                      exit 1   HTTP 500
    ├── UsageError               exit 2   HTTP 400   wrong arguments
    ├── ConfigError              exit 3   HTTP 500   deploy/config.json
    ├── CheckpointError          exit 4   HTTP 500   the input of a conversion
    │   └── UnsupportedModelError                    understood, but nothing here can run or convert it
    ├── PackageError             exit 4   HTTP 500   the output of a conversion
    ├── RepositoryError          exit 4   HTTP 500   a Triton model repository
    ├── EnvironmentProblem       exit 5   HTTP 500   Python, libraries, GPU, server binary
    ├── ServiceError             exit 6   HTTP 503   start, stop and the running service
    │   └── EngineError                   HTTP 502   the engine failed a request
    ├── NetworkError             exit 7   HTTP 502   hub or index out of reach, gated, not found
    ├── ResourceError            exit 8   HTTP 507   disk, memory, permissions, ports
    └── Interrupted              exit 130            Ctrl-C; the command can be run again

A message has three parts: what happened, why, and what to type next.
"""

from __future__ import annotations

from typing import ClassVar


class EwError(Exception):
    """Base of all expected errors; anything else that escapes is a bug.

    Args:
        what: one sentence, what happened.
        why: the cause, where it is known.
        hint: what to type or change next.
        code: stable machine-readable name; the class's own when not given.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    default_code: ClassVar[str] = "error"

    def __init__(self, what: str, *, why: str = "", hint: str = "", code: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint
        self.code = code or self.default_code

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why) if part)

    def as_dict(self) -> dict[str, str]:
        """The JSON form that `--json` and the proxy show: code, message, why, hint."""
        fields = {"code": self.code, "message": self.what, "why": self.why, "hint": self.hint}
        return {key: value for key, value in fields.items() if value}


class UsageError(EwError):
    exit_code = 2
    http_status = 400
    default_code = "usage"


class ConfigError(EwError):
    exit_code = 3
    default_code = "config"


class CheckpointError(EwError):
    exit_code = 4
    default_code = "checkpoint"


class UnsupportedModelError(CheckpointError):
    default_code = "unsupported_model"


class PackageError(EwError):
    exit_code = 4
    default_code = "package"


class RepositoryError(EwError):
    exit_code = 4
    default_code = "repository"


class EnvironmentProblem(EwError):
    exit_code = 5
    default_code = "environment"


class ServiceError(EwError):
    exit_code = 6
    http_status = 503
    default_code = "service"


class EngineError(ServiceError):
    http_status = 502
    default_code = "engine"


class NetworkError(EwError):
    exit_code = 7
    http_status = 502
    default_code = "network"


class ResourceError(EwError):
    exit_code = 8
    http_status = 507
    default_code = "resource"


class Interrupted(EwError):
    exit_code = 130
    default_code = "interrupted"

    def __init__(self, what: str = "Interrupted.", **parts: str) -> None:
        parts.setdefault("hint", "Run the same command again; it goes on where it stopped.")
        super().__init__(what, **parts)
