"""uvicorn, with one worker or several on one port."""

from __future__ import annotations

import os

import uvicorn
from uvicorn.supervisors import Multiprocess

from proxy.gateway import SETTINGS_VARIABLE, create_app
from proxy.guard import GuardedProtocol
from proxy.settings import Settings

AFTER_DRAIN_SECONDS = 5


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
        http=GuardedProtocol,
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
    server = uvicorn.Server(config)
    server.run()
    return 0 if server.started else 1
