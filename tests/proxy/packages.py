"""A package as the proxy needs it: a small tokenizer, a chat template, end ids."""

from __future__ import annotations

import json
from pathlib import Path

from tests.proxy.tokenizers_made import byte_level

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_package(folder: Path) -> Path:
    """Write `folder`/tokenizer; returns `folder`."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    byte_level().save(str(tokenizer / "tokenizer.json"))
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE})
    )
    (tokenizer / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    return folder
