"""Which tritonservers there are, and which models are whose: a file that is read again when it changes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError


@dataclass(frozen=True)
class Route:
    """One tritonserver: the addresses of its HTTP and metrics ports, and the model ids that it serves."""

    url: str
    metrics: str
    models: tuple[str, ...]


class RoutesFile:
    """`{"tritonservers": [{"url", "metrics", "models"}]}`, replaced as a whole by whoever writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None

    def changed(self) -> tuple[Route, ...] | None:
        """The routes when the file is new or another one since the last call; else None.

        Raises:
            ConfigError: the file cannot be read, or is not as described.
        """
        try:
            status = self._path.stat()
            if (status.st_ino, status.st_mtime_ns) == self._seen:
                return None
            self._seen = (status.st_ino, status.st_mtime_ns)
            return _parse(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} cannot be read as a routes file: {error!r}.") from None


def _parse(text: bytes) -> tuple[Route, ...]:
    rows = json.loads(text)["tritonservers"]
    return tuple(Route(str(row["url"]), str(row["metrics"]), tuple(row["models"])) for row in rows)
