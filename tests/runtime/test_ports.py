"""Free ports, and clear words where one is taken."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from common.errors import ResourceError, UsageError
from runtime import ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_listened_port_is_not_free(taken: int) -> None:
    assert not ports.is_free(taken)
    with pytest.raises(ResourceError) as caught:
        ports.require(taken, "127.0.0.1")
    assert caught.value.code == "port_in_use"
    assert str(taken) in caught.value.what and "--port" in caught.value.hint


def test_taken_and_repeated_wishes_get_other_ports(taken: int) -> None:
    with ExitStack() as kept:
        reserved = [kept.enter_context(place) for place in ports.reserve((taken, taken, taken))]
        numbers = [ports.port_of(place) for place in reserved]
        assert len(set(numbers)) == 3
        assert taken not in numbers
        assert all(ports.is_free(number) for number in numbers)


def test_a_reserved_port_is_nobody_elses_until_it_is_let_go(taken: int) -> None:
    (first,) = ports.reserve((taken,))
    wish = ports.port_of(first)
    with first:
        (second,) = ports.reserve((wish,))
        with second:
            assert ports.port_of(second) != wish
        with pytest.raises(ResourceError):
            ports.require(wish, "127.0.0.1")
    with ports.require(wish, "127.0.0.1") as again:
        assert ports.port_of(again) == wish


def test_a_child_keeps_what_it_inherits(taken: int) -> None:
    (reserved,) = ports.reserve((taken,))
    with reserved:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[reserved.fileno()])
        wish = ports.port_of(reserved)
    with pytest.raises(ResourceError):
        ports.require(wish, "127.0.0.1")
    child.kill()
    child.wait()
    ports.require(wish, "127.0.0.1").close()


def test_a_port_closed_a_moment_ago_is_free() -> None:
    """Connections that still time out on a server's side must not make a restart fail."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
        accepted.close()
        client.close()
    assert ports.is_free(port)


def test_an_address_of_another_machine_is_no_busy_port() -> None:
    for host in ("300.1.1.1", "192.0.2.1"):
        with pytest.raises(UsageError) as caught:
            ports.require(ports.port_of(ports.reserve_any()), host)
        assert caught.value.code == "bad_host"
