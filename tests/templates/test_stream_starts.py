"""The way past Triton from preprocessing to postprocessing."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    module = importlib.import_module("stream_starts")
    listener = module.StartListener("test-starts-postprocessing", "1")
    announcer = module.StartAnnouncer("test-starts-preprocessing", "1")
    yield listener, announcer
    listener.close()
    announcer.close()


def test_what_was_announced_before_a_read_is_in_it(pair: tuple[Any, Any]) -> None:
    listener, announcer = pair
    for number in range(300):
        announcer.announce(f"r{number}")
        announcer.announce("")
        assert listener.read() == [f"r{number}"]
    assert listener.read() == []


def test_more_announcements_than_the_socket_queue_holds(pair: tuple[Any, Any]) -> None:
    listener, announcer = pair
    pause = threading.Event()
    for number in range(200):
        announcer.announce(f"{number} 你好")
        pause.wait(0.001)
    assert listener.read() == [f"{number} 你好" for number in range(200)]


def test_serving_goes_on_where_nobody_listens_or_somebody_does_already(pair: tuple[Any, Any]) -> None:
    module = importlib.import_module("stream_starts")
    lonely = module.StartAnnouncer("nobody-preprocessing", "1")
    lonely.announce("r")
    lonely.close()
    second = module.StartListener("test-starts-postprocessing", "1")
    pair[1].announce("r")
    assert (second.read(), pair[0].read()) == ([], ["r"])
    second.close()
