"""Free ports, and clear words where one is taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from common.errors import ResourceError
from runtime import ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_listened_port_is_not_free(taken: int) -> None:
    assert not ports.is_free(taken)
    with pytest.raises(ResourceError) as caught:
        ports.require_free(taken, "127.0.0.1")
    assert caught.value.code == "port_in_use"
    assert str(taken) in caught.value.what and "--port" in caught.value.hint


def test_taken_and_repeated_wishes_get_other_ports(taken: int) -> None:
    chosen = ports.pick((taken, taken, taken))
    assert len(set(chosen)) == 3
    assert taken not in chosen
    assert all(ports.is_free(port) for port in chosen)


def test_a_free_wish_is_granted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        wish: int = server.getsockname()[1]
        assert ports.pick((wish,)) != (wish,)
    assert ports.pick((wish,)) == (wish,)


def test_a_port_closed_a_moment_ago_is_free() -> None:
    """Connections that still time out on a server's side must not make a restart fail."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    assert ports.is_free(port)
