"""What migrate finds out: rows of the table, and the parts of a model entry."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from common.triton_settings import TritonSettings

Outcome = Literal["carried", "changed", "dropped"]


@dataclass(frozen=True)
class Row:
    """One value of the old repository and what became of it."""

    model: str
    key: str
    value: str
    outcome: Outcome
    note: str = ""


@dataclass
class Reading:
    """An old model: `sizes` are fields of the new entry, `settings` its triton part.

    `arguments` are those of tensorrt_llm.LLM, which convert-trt puts into the package; `checkpoint` is the
    Hugging Face folder or hub id, where the old repository names it, `revision` its commit.
    """

    sizes: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    revision: str | None = None
    rows: list[Row] = field(default_factory=list)

    def note(self, model: str, key: str, value: Any, outcome: Outcome, note: str = "") -> None:
        self.rows.append(Row(model, key, shown(value), outcome, note))


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_setting(key: str, value: Any) -> bool:
    """Whether models.ID.triton takes this value."""
    setting = TritonSettings.model_fields.get(key)
    if setting is None:
        return False
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(Annotated[setting.annotation, setting])  # type: ignore[arg-type]
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


def lengths(longest: Any, total: Any) -> dict[str, int]:
    """Limits of prompt and answer out of a prompt limit and one for both; none where these say nothing."""
    if not isinstance(longest, int) or not isinstance(total, int) or not 0 < longest < total:
        return {}
    return {"max_input_len": longest, "max_output_len": total - longest}


def with_argument(arguments: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """Arguments of tensorrt_llm.LLM with one more; `a.b` is the part b of the argument a."""
    part, _, inner = name.partition(".")
    return {**arguments, part: {**arguments.get(part, {}), inner: value} if inner else value}
