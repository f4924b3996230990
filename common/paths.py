"""Where things live. `EW_HOME` moves all of it; otherwise it is the folder that holds the `ew` launcher."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SOURCE_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Home:
    """The folders of one installation; relative paths in deploy/config.json start at `root`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "deploy" / "config.json"

    @property
    def repository(self) -> Path:
        return self.root / "model_repository"

    @property
    def models(self) -> Path:
        """Packages that `ew` makes without being told where (the demo, `convert-trt` by default)."""
        return self.root / "models"

    @property
    def run(self) -> Path:
        """State of running services: pid files, ports, API keys."""
        return self.root / "run"

    @property
    def keys(self) -> Path:
        """The API keys; `EW_KEYS_FILE` names another file, such as a Secret that a cluster mounts."""
        return Path(os.environ.get("EW_KEYS_FILE") or self.run / "keys.json")

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def cache(self) -> Path:
        """Downloads, environments and compiled graphs; safe to delete while nothing runs."""
        return self.root / ".cache"

    def resolve(self, path: str | Path) -> Path:
        """`path` as an absolute path; a relative one starts at the root."""
        expanded = Path(path).expanduser()
        return expanded if expanded.is_absolute() else self.root / expanded


def home() -> Home:
    """The installation in force: `EW_HOME`, else the source checkout."""
    return Home(Path(os.environ.get("EW_HOME") or SOURCE_ROOT).resolve())
