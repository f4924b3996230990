"""Chat templates: the dialect of Hugging Face, in a sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import PackageError, UsageError
from proxy.chat import ChatTemplate, load_chat_template

USER = [{"role": "user", "content": "<b>你好</b>"}]


def render(source: str, messages: Any = USER, **variables: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **variables)


@pytest.mark.parametrize(
    "source, text",
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "<s><b>你好</b>"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "<b>你好</b>"}'),
        ("{{ tools | tojson(indent=1) }}", '[\n 1\n]'),
        ("{% for i in [1, 2, 3] %}{% if i == 1 %}{% continue %}{% endif %}a{% break %}{% endfor %}", "a"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
        ("{% if add_generation_prompt %}\n  yes\n{% endif %}", "  yes\n"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ missing }}|", "|"),
    ],
)  # fmt: skip
def test_the_dialect(source: str, text: str) -> None:
    assert render(source, tools=[1]) == text


def test_a_template_may_refuse() -> None:
    with pytest.raises(UsageError, match="only one user"):
        render("{{ raise_exception('only one user') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(UsageError, match="refuses"):
        render(source)


def test_a_broken_template_is_named_at_load() -> None:
    with pytest.raises(PackageError, match="cannot be compiled"):
        ChatTemplate("{% if %}", {})


def test_where_a_template_is_found(tmp_path: Path) -> None:
    named: Any = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert load_chat_template(tmp_path, {}) is None
    found = load_chat_template(tmp_path, {"chat_template": named})
    assert found is not None and found.render(USER) == "d"
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}")
    settings = {"chat_template": "config", "eos_token": {"content": "</s>"}}
    found = load_chat_template(tmp_path, json.loads(json.dumps(settings)))
    assert found is not None and found.render(USER) == "file </s>"
