"""uvicorn with a drain that ends what it cannot wait for in words."""

from __future__ import annotations

import os
import socket
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from proxy.gateway import SETTINGS_VARIABLE, create_app
from proxy.settings import Settings

AFTER_DRAIN_SECONDS = 5


class DrainingServer(uvicorn.Server):
    """On a signal: refuse new requests, let running ones finish, then end them with a typed event."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        application: Any = self.config.loaded_app
        application.service.begin_drain()
        await super().shutdown(sockets)


def run_server(settings: Settings) -> int:
    os.environ[SETTINGS_VARIABLE] = settings.to_json()
    config = uvicorn.Config(
        create_app if settings.workers == 1 else "proxy.gateway:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=4096,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.drain) + AFTER_DRAIN_SECONDS,
    )
    if settings.workers > 1:
        Multiprocess(config, [config.bind_socket()]).run()
        return 0
    server = DrainingServer(config)
    server.run()
    return 0 if server.started else 1
