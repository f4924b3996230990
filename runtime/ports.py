"""TCP ports: free ones, and keeping them while their server is still loading.

tritonserver opens its ports only after all models are loaded. Until then, and as long as it lives, a UDP
socket of the same number, which it inherits, keeps the place. So two services that start at once never
choose the same one.
"""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass

from common.errors import ResourceError, UsageError

LOOPBACK = "127.0.0.1"
# Below Linux's range for outgoing connections: one of them could take a port that nobody listens on yet.
UNASSIGNED = (20000, 32000)


@dataclass(frozen=True)
class TritonPorts:
    """Where one tritonserver listens, on loopback; its usual ports."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def as_tuple(self) -> tuple[int, int, int]:
        return (self.http, self.grpc, self.metrics)


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on `host`:`port` now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier run that still time out don't count as busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _binds(probe, host, port)


def reserve(preferred: tuple[int, ...]) -> list[socket.socket]:
    """Free loopback ports, the preferred ones where they are free, each kept by a socket (`port_of`)."""
    return [_reserve(LOOPBACK, wish) or reserve_any() for wish in preferred]


def require(port: int, host: str) -> socket.socket:
    """Reserve exactly this port.

    Raises:
        ResourceError: something listens on it or is about to, or this user may not.
        UsageError: the machine has no such address.
    """
    reserved = _reserve(host, port)
    if reserved is not None:
        return reserved
    if not _binds_any_port(host):
        raise UsageError(
            f"{host!r} is not an address of this machine.",
            hint="Use 127.0.0.1 (this machine only), 0.0.0.0 (all addresses), or one of `ip address`.",
            code="bad_host",
        )
    why = "Ports below 1024 need root." if port < 1024 else "Another program listens there."
    raise ResourceError(
        f"Port {port} on {host} cannot be used.",
        why=why,
        hint="Choose another one with --port, or see who listens: ss -ltnp",
        code="port_in_use",
    )


def port_of(reserved: socket.socket) -> int:
    port: int = reserved.getsockname()[1]
    return port


def _reserve(host: str, port: int) -> socket.socket | None:
    reserved = socket.socket(_family(host), socket.SOCK_DGRAM)
    if is_free(port, host) and _binds(reserved, host, port):
        return reserved
    reserved.close()
    return None


def reserve_any() -> socket.socket:
    """Any free port outside the range that the kernel gives to outgoing connections."""
    while True:
        if reserved := _reserve(LOOPBACK, random.randrange(*UNASSIGNED)):
            return reserved


def _binds(candidate: socket.socket, host: str, port: int) -> bool:
    try:
        candidate.bind((host, port))
    except OSError:
        return False
    return True


def _binds_any_port(host: str) -> bool:
    with socket.socket(_family(host), socket.SOCK_STREAM) as candidate:
        return _binds(candidate, host, 0)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
