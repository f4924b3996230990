"""Tool calls in the text of a model: one format a family, found by what its chat template writes."""

from __future__ import annotations

import ast
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proxy.models import ServedModel
from proxy.stops import StopMatcher

HERMES_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)
MISTRAL_CALL = re.compile(r"\[TOOL_CALLS\]\s*([\w.-]+)(?:\[CALL_ID\]\w*)?\[ARGS\]\s*")
GLM3_CALL = re.compile(r"^\s*([A-Za-z_][\w.-]*)\s*\n\s*```python\s*\n(.*?)\n?\s*(?:```|$)", re.DOTALL)
MAY_BE_GLM_CALL = re.compile(r"\s*|\s*[A-Za-z_][\w.-]*\s*(\n\s*([{`].*)?)?", re.DOTALL)
GLM_CALL = re.compile(r"^\s*([A-Za-z_][\w.-]*)\s*\n\s*(\{.*\})\s*$", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One tool call; `arguments` is JSON text, as the OpenAI API has it."""

    name: str
    arguments: str

    def document(self, index: int | None = None) -> dict[str, Any]:
        call: dict[str, Any] = {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }
        return call if index is None else {"index": index, **call}


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls.

    A text that may be a call is held back from `marker` on, or from its beginning if `whole` says that
    it begins like a call. `opening` is what a prompt ends with to force a call; `{name}` is filled in.
    """

    name: str
    marker: str | None
    whole: Callable[[str], bool]
    parse: Callable[[str], list[Call]]
    opening: str
    opening_any: str
    show_special: bool = False


def tool_format(model: ServedModel) -> ToolFormat | None:
    """The format of a model, or None where its template knows no tools."""
    source = model.template.source if model.template else ""
    if "tools" not in source:
        return None
    for sign, form in FORMATS:
        if sign in source:
            return form
    return None


class CallWatch:
    """Lets through what the model says, and keeps back what it calls."""

    def __init__(self, form: ToolFormat, names: frozenset[str], prefix: str) -> None:
        self._form = form
        self._names = names
        self._held = prefix
        self._calling = bool(prefix)
        self._undecided = True
        self._marker = StopMatcher((form.marker,)) if form.marker else None

    def push(self, text: str) -> str:
        """The part of the text that cannot belong to a call."""
        if self._calling or self._undecided:
            text, self._held = "", self._held + text
            if self._calling or self._form.whole(self._held):
                return ""
            text, self._held, self._undecided = self._held, "", False
        return self._until_marker(text)

    def rest(self) -> tuple[str, list[Call]]:
        """What was kept back, at the end: text that was no call after all, and the calls."""
        held = self._held
        if self._marker is not None and not self._calling:
            held += self._marker.flush()
        return split(self._form, held, self._names)

    def _until_marker(self, text: str) -> str:
        if self._marker is None:
            return text
        shown = self._marker.push(text)
        if self._marker.matched is not None:
            self._calling = True
            self._held = self._marker.matched + self._marker.after
        return shown


def split(form: ToolFormat, text: str, names: frozenset[str]) -> tuple[str, list[Call]]:
    """(what the model says, what it calls); calls of tools that were not offered are text."""
    before, marker, after = text.partition(form.marker) if form.marker else ("", "", text)
    if form.marker and not marker:
        before, after = ("", text) if form.whole(text) else (text, "")
    calls = form.parse(marker + after) if after else []
    if not calls or any(call.name not in names for call in calls):
        return text, []
    return before if before.strip() else "", calls


def _hermes(text: str) -> list[Call]:
    found = [_call(_json(match)) for match in HERMES_CALL.findall(text)]
    return [call for call in found if call is not None]


def _mistral(text: str) -> list[Call]:
    document = _json(text.removeprefix("[TOOL_CALLS]").strip())
    entries = document if isinstance(document, list) else [document]
    found = [_call(entry) for entry in entries]
    return [call for call in found if call is not None]


def _mistral_args(text: str) -> list[Call]:
    """`[TOOL_CALLS]name[ARGS]{...}`, repeated: Mistral's tokenizers from version 11 on."""
    parts = MISTRAL_CALL.split(text)
    calls = [
        (name, _json(arguments.strip())) for name, arguments in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return [Call(name, _dumps(arguments)) for name, arguments in calls if isinstance(arguments, dict)]


def _llama(text: str) -> list[Call]:
    parts = text.removeprefix("<|python_tag|>").split(";")
    found = [_call(_json(part.strip())) for part in parts]
    if any(call is None for call in found):
        whole = _call(_json(text.removeprefix("<|python_tag|>").strip()))
        return [whole] if whole else []
    return [call for call in found if call is not None]


def _glm(text: str) -> list[Call]:
    """A name and, on the next line, JSON (GLM-4) or a line of Python (ChatGLM3)."""
    match = GLM_CALL.match(text)
    if match is not None and isinstance(_json(match[2]), dict):
        return [Call(match[1], _dumps(_json(match[2])))]
    match = GLM3_CALL.match(text)
    arguments = _keywords(match[2]) if match is not None else None
    return [] if match is None or arguments is None else [Call(match[1], _dumps(arguments))]


def _keywords(source: str) -> dict[str, Any] | None:
    """The arguments of `tool_call(city='Paris', days=2)`; only literals, nothing is run."""
    try:
        node = ast.parse(source.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _call(document: Any) -> Call | None:
    """{"name", "arguments" or "parameters"} as a Call."""
    if not isinstance(document, dict) or not isinstance(document.get("name"), str):
        return None
    arguments = document.get("arguments", document.get("parameters", {}))
    if isinstance(arguments, str):
        return Call(document["name"], arguments)
    return Call(document["name"], _dumps(arguments))


def _dumps(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False, default=str)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _never(text: str) -> bool:
    return False


def _opens_object(text: str) -> bool:
    return text.lstrip()[:1] in ("{", "")


def _may_be_name(text: str) -> bool:
    return MAY_BE_GLM_CALL.fullmatch(text) is not None


HERMES = ToolFormat(
    "hermes",
    "<tool_call>",
    _never,
    _hermes,
    '<tool_call>\n{"name": "{name}", "arguments": ',
    '<tool_call>\n{"name": "',
)
MISTRAL = ToolFormat(
    "mistral",
    "[TOOL_CALLS]",
    _never,
    _mistral,
    '[TOOL_CALLS] [{"name": "{name}", "arguments": ',
    '[TOOL_CALLS] [{"name": "',
    show_special=True,
)
MISTRAL_ARGS = ToolFormat(
    "mistral-args",
    "[TOOL_CALLS]",
    _never,
    _mistral_args,
    "[TOOL_CALLS]{name}[ARGS]",
    "[TOOL_CALLS]",
    show_special=True,
)
LLAMA = ToolFormat(
    "llama3",
    "<|python_tag|>",
    _opens_object,
    _llama,
    '{"name": "{name}", "parameters": ',
    '{"name": "',
    show_special=True,
)
GLM = ToolFormat("chatglm", None, _may_be_name, _glm, "{name}\n", "")
FORMATS = (
    ("<tool_call>", HERMES),
    ("[ARGS]", MISTRAL_ARGS),
    ("[TOOL_CALLS]", MISTRAL),
    ("[AVAILABLE_TOOLS]", MISTRAL),
    ("<|python_tag|>", LLAMA),
    ("ipython", LLAMA),
    ("<|observation|>", GLM),
)
