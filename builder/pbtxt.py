"""config.pbtxt: Jinja templates in, checked protobuf text out."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2

from common.errors import EnvironmentProblem, RepositoryError
from common.paths import SOURCE_ROOT

TEMPLATES = SOURCE_ROOT / "templates"
CONFIG_NAME = "config.pbtxt"
ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quote(value: str) -> str:
    """`value` as a protobuf text string, quotes included; control characters become octal escapes."""
    return '"' + "".join(_escape(character) for character in value) + '"'


def fill_template(kind: str, variables: dict[str, Any]) -> str:
    """The text of `templates/<kind>/config.pbtxt.j2`, parsed as ModelConfig before it is returned.

    Raises:
        RepositoryError: an undefined variable, a broken template, or text that is no ModelConfig.
    """
    name = f"{kind}/{CONFIG_NAME}.j2"
    try:
        text = template_environment().get_template(name).render(variables).rstrip() + "\n"
    except jinja2.TemplateError as error:
        raise RepositoryError(
            f"The template {name} cannot be filled: {error}.",
            hint=f"Correct {TEMPLATES / name}.",
            code="template_invalid",
        ) from None
    parse_config(text, source=f"the filled template {name}")
    return text


def parse_config(text: str, *, source: str) -> Any:
    """`text` as a ModelConfig message.

    Raises:
        RepositoryError: not protobuf text, an unknown field or a wrong type; names line and column.
    """
    from google.protobuf import text_format  # type: ignore[import-untyped]

    try:
        return text_format.Parse(text, model_config_messages().ModelConfig())
    except (text_format.ParseError, ValueError) as error:
        raise RepositoryError(
            f"{source} is not a Triton model configuration.",
            why=_described(error, text),
            code="pbtxt_invalid",
        ) from None


def _described(error: Exception, text: str) -> str:
    """`line:column : message`; protobuf leaves the place out where a number is too large for its field."""
    number = re.search(r"out of range: (\S+)$", str(error))
    position = text.find(number[1]) if number else -1
    if position < 0:
        return str(error)
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    return f"{line}:{column} : {error}"


@cache
def model_config_messages() -> ModuleType:
    """tritonclient's ModelConfig classes, loaded without gRPC, which takes 400 ms longer."""
    loaded = sys.modules.get("tritonclient.grpc.model_config_pb2")
    if loaded is not None:
        return loaded
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        raise EnvironmentProblem("tritonclient is not installed.", hint="Run ./ew setup --engine cpu.")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def template_environment() -> jinja2.Environment:
    """The templates' Jinja environment; compiled templates stay in it."""
    # Protobuf text is no HTML: quoting is done by the pbtxt filter alone.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["pbtxt"] = quote
    return environment


def _escape(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    if character < " " or character == "\x7f":
        return f"\\{ord(character):03o}"
    return character
