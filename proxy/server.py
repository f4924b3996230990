"""uvicorn, with one worker or several on one port."""

from __future__ import annotations

import os

import uvicorn
from uvicorn.supervisors import Multiprocess

from proxy.direct import DirectProtocol
from proxy.gateway import SETTINGS_VARIABLE, create_app
from proxy.settings import Settings

AFTER_DRAIN_SECONDS = 5


class Workers(Multiprocess):
    """Several workers on one port, which is closed as soon as they end."""

    def terminate_all(self) -> None:
        for listening in self.sockets:
            listening.close()  # else new connections wait here for workers that take none any more
        super().terminate_all()


def run_server(settings: Settings) -> int:
    """Serve until a signal; the exit code."""
    os.environ[SETTINGS_VARIABLE] = settings.to_json()
    config = uvicorn.Config(
        create_app if settings.workers == 1 else "proxy.gateway:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="uvloop",
        http=DirectProtocol,
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
        Workers(config, [config.bind_socket()]).run()
        return 0
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1
