"""Chat templates: the Jinja templates of Hugging Face tokenizers, rendered in a sandbox."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.errors import PackageError, UsageError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class TemplateRefusal(Exception):
    """A template called raise_exception: the messages do not suit this model."""


class ChatTemplate:
    """A compiled template and the special tokens it may name."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        self.source = source
        self._special_tokens = special_tokens
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise PackageError(
                f"The chat template cannot be compiled: {error}.",
                hint='Send requests with "raw": true, or correct the template in the package.',
            ) from None

    def render(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        """The prompt text for `messages`, ending where the assistant begins to speak.

        Raises:
            UsageError: the template refuses these messages (an unknown role, a wrong order).
        """
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._special_tokens, **variables
            )
        except (TemplateRefusal, jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise UsageError(
                "The model's chat template refuses these messages.",
                why=str(error),
                hint='Check roles and their order; "raw": true sends a prompt without the template.',
                code="chat_template",
            ) from None


def load_chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> ChatTemplate | None:
    """The template of a tokenizer folder: chat_template.jinja, else the one in tokenizer_config.json."""
    source = _template_source(folder, tokenizer_config)
    if not source:
        return None
    return ChatTemplate(source, special_tokens(tokenizer_config))


def special_tokens(tokenizer_config: dict[str, Any]) -> dict[str, str]:
    named = {name: _content(tokenizer_config.get(name)) for name in SPECIAL_TOKENS}
    return {name: token for name, token in named.items() if token is not None}


def _template_source(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _environment() -> ImmutableSandboxedEnvironment:
    """The dialect that Hugging Face templates are written in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's tokens for training; here it only shows its content."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which would change prompts.
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateRefusal(message)
