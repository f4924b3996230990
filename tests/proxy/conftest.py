"""A package with a small tokenizer, and the proxy over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.proxy.packages import write_package
from tests.proxy.stack import Stack, running_stack


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The loop that the proxy runs on; it is stricter with closed connections than asyncio's own."""
    policy: asyncio.AbstractEventLoopPolicy = uvloop.EventLoopPolicy()
    return policy


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("package"))


@pytest.fixture
def make_stack(package: Path, tmp_path: Path) -> Callable[..., Any]:
    """`async with make_stack(drain=1) as stack`: settings as keywords."""

    def make(**options: Any) -> AbstractAsyncContextManager[Stack]:
        return running_stack(options.pop("package", package), tmp_path, options)

    return make


@pytest.fixture
async def stack(make_stack: Callable[..., Any]) -> AsyncIterator[Stack]:
    async with make_stack() as made:
        yield made
