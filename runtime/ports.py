"""Free TCP ports on this machine."""

from __future__ import annotations

import socket

from common.errors import ResourceError

LOOPBACK = "127.0.0.1"


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on `host`:`port` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier run that still time out don't count as busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def pick(preferred: tuple[int, ...]) -> tuple[int, ...]:
    """Distinct free loopback ports, the preferred ones where they are free."""
    chosen: list[int] = []
    for wish in preferred:
        port = wish
        while port in chosen or not is_free(port):
            port = _any_free()
        chosen.append(port)
    return tuple(chosen)


def require_free(port: int, host: str) -> None:
    """
    Raises:
        ResourceError: something listens on the port, or this user may not.
    """
    if is_free(port, host):
        return
    why = "Ports below 1024 need root." if port < 1024 else "Another program listens there."
    raise ResourceError(
        f"Port {port} on {host} cannot be used.",
        why=why,
        hint="Choose another one with --port, or see who listens: ss -ltnp",
        code="port_in_use",
    )


def _any_free() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
