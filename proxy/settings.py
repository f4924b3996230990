"""What the proxy is started with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Command-line settings; times in seconds, sizes in bytes. Secrets are never among them."""

    config: str
    triton: tuple[str, ...] = ("http://127.0.0.1:8000",)
    triton_metrics: tuple[str, ...] = ()
    triton_header_file: str | None = None
    routes: str | None = None
    keys: str | None = None
    models: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    max_body_bytes: int = 4 << 20
    max_queue: int = 1024
    max_per_key: int = 4096
    header_hold: float = 10.0
    load_wait: float = 120.0
    request_timeout: float = 600.0
    body_timeout: float = 30.0
    write_timeout: float = 60.0
    drain: float = 20.0
    lame_duck: float = 0.0
    cors_origins: tuple[str, ...] = ()
    log_level: str = "info"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        return cls.from_values(json.loads(text))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Settings:
        """Settings from plain values, lists where tuples are meant."""
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**fields)
