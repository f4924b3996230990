"""A package with a small tokenizer, and the proxy over it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.stack import Stack, running_stack
from tests.proxy.tokenizers_made import byte_level

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "tokenizer"
    folder.mkdir()
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    return folder.parent


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
