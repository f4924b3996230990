"""JSON schemas as far as the grammar compiler holds an answer to them.

It passes over some keywords in silence, and an answer that only nearly fits its schema is worse than none.
So a schema that uses them is refused, and integer ranges, whose upper end it can overshoot, become lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from worker.protocol import Status
from worker.validate import RequestRefused

MOST_RANGE_VALUES = 1000
PASSED_OVER = frozenset(
    {
        *("multipleOf", "uniqueItems", "contains", "minContains", "maxContains"),
        *("not", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties"),
        *("unevaluatedProperties", "unevaluatedItems"),
    }
)
RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
LENGTHS = ("minLength", "maxLength")
# Only the first of these counts for the compiler, and nothing beside it.
WHOLE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
ASSERTIONS = frozenset({*RANGE, *LENGTHS, *WHOLE, "type", "pattern", "format"}).union(
    ("properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems")
)
SCHEMAS_BY_NAME = ("properties", "$defs", "definitions")
SCHEMA_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")
SCHEMAS = ("items", "additionalProperties")
TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(RANGE, (int, float)),
    **dict.fromkeys(SCHEMAS_BY_NAME, dict),
    **dict.fromkeys((*SCHEMA_LISTS, "required"), list),
}


def enforced(schema: Any, place: str = "#") -> Any:
    """`schema` in a form that the compiler holds answers to.

    Raises:
        RequestRefused: it has no such form; the message names the keyword and where it stands.
    """
    if not isinstance(schema, Mapping):
        return schema  # true, or what the compiler refuses
    for keyword in _not_enforced(schema):
        raise RequestRefused(
            f"guided_decoding_guide: this engine cannot hold an answer to {keyword} at {place}.",
            status=Status.UNSUPPORTED,
            code="schema_not_enforced",
        )
    changed = {name: _inner(name, value, place) for name, value in schema.items()}
    return _without_range(changed)


def _inner(name: str, value: Any, place: str) -> Any:
    place = f"{place}/{name}"
    if name in SCHEMAS_BY_NAME:
        return {key: enforced(inner, f"{place}/{key}") for key, inner in value.items()}
    if name in SCHEMA_LISTS:
        return [enforced(inner, f"{place}/{index}") for index, inner in enumerate(value)]
    return enforced(value, place) if name in SCHEMAS else value


def _not_enforced(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name} of this type" for name, kind in TYPES.items() if not _is(schema, name, kind))
    yield from sorted(PASSED_OVER & schema.keys())
    for keyword in WHOLE:
        if keyword in schema:
            allowed = {keyword, "type"} if keyword in ("const", "enum") else {keyword}
            yield from (f"{other} beside {keyword}" for other in sorted(ASSERTIONS & schema.keys() - allowed))
    if len(schema.get("allOf", [])) > 1:
        yield "allOf with several schemas"
    if "pattern" in schema or "format" in schema:
        yield from (f"{name} beside pattern or format" for name in LENGTHS if name in schema)
    yield from _unnamed_properties(schema)
    yield from _wide_range(schema)


def _is(schema: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> bool:
    return name not in schema or isinstance(schema[name], kind)


def _unnamed_properties(schema: Mapping[str, Any]) -> Iterator[str]:
    named = schema.get("properties", {})
    for name in schema.get("required", ()):
        if not isinstance(name, str) or name not in named:
            yield f"required of {name!r}, which properties does not name,"


def _wide_range(schema: Mapping[str, Any]) -> Iterator[str]:
    found = [name for name in RANGE if name in schema]
    if not found:
        return
    low, high = _bounds(schema)
    if schema.get("type") != "integer":
        yield f"{found[0]} of a number that is no integer"
    elif high < math.inf and high - low >= MOST_RANGE_VALUES:
        yield f"a range of more than {MOST_RANGE_VALUES} integers"


def _bounds(schema: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the greatest integer of a range."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf) + 1)
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - 1)
    return low, high


def _without_range(schema: dict[str, Any]) -> dict[str, Any]:
    if not any(name in schema for name in RANGE):
        return schema
    low, high = _bounds(schema)
    if high == math.inf:
        return schema
    kept = {name: value for name, value in schema.items() if name not in (*RANGE, "type")}
    return {**kept, "enum": list(range(math.ceil(low), math.floor(high) + 1))}
