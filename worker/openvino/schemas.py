"""JSON schemas as grammars.

The compiler has a translation of its own, but that passes over keywords in silence, overshoots ranges, lets
control characters into strings, and allows white space without end, with which small models go on for ever.
Here white space is bounded, properties come in the order of the schema, and what is not carried out exactly
is refused. An object has no properties beyond the named ones unless additionalProperties says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from worker.openvino.patterns import SAFE_CHARACTER, literal, pattern_rule
from worker.protocol import Status
from worker.validate import RequestRefused

JSON_RULES = rf"""
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{{" space (member (space "," space member)*)? space "}}"
member ::= string space ":" space value
array ::= "[" space (value (space "," space value)*)? space "]"
string ::= "\"" (counted | "\\u" [0-9a-fA-F]{{4}})* "\""
counted ::= {SAFE_CHARACTER} | "\\" ["\\/bfnrt]
number ::= integer ("." [0-9]+)? ([eE] [-+]? [0-9]{{1,2}})?
integer ::= "-"? natural
natural ::= "0" | positive
positive ::= [1-9] [0-9]*
boolean ::= "true" | "false"
date ::= [0-9]{{4}} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{{1,6}})? zone
zone ::= "Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]
uuid ::= [0-9a-f]{{8}} ("-" [0-9a-f]{{4}}){{3}} "-" [0-9a-f]{{12}}
space ::= " "? | "\n" " "{{0,32}}
"""
ANY_OBJECT = f"root ::= object\n{JSON_RULES}"
COMMA = 'space "," space'
FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}
MOST_RANGE_VALUES = 1000
RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
LENGTHS = ("minLength", "maxLength")
# Each of these is the whole schema; what stands beside it would be passed over.
WHOLE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
# The keywords that belong to a type, by which a schema without a type is taken for it.
BY_TYPE = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("pattern", "format", *LENGTHS),
    "integer": RANGE,
}
KNOWN = frozenset({"type", *WHOLE, *(keyword for keywords in BY_TYPE.values() for keyword in keywords)})
PASSED_OVER = frozenset(
    {
        *("multipleOf", "uniqueItems", "contains", "minContains", "maxContains"),
        *("not", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties"),
        *("unevaluatedProperties", "unevaluatedItems", "additionalItems", "$dynamicRef"),
    }
)
TYPES: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(RANGE, (int, float)),
    **dict.fromkeys((*LENGTHS, "minItems", "maxItems"), int),
    **dict.fromkeys(("pattern", "format", "$ref"), str),
    **dict.fromkeys(("prefixItems", "anyOf", "oneOf", "allOf", "enum", "required"), list),
    "properties": dict,
}
VALUES_OF: Mapping[Any, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
}


def schema_grammar(schema: Any) -> str:
    """The grammar of the texts that are valid by `schema`.

    Raises:
        RequestRefused: answers cannot be held to it; the message names the keyword and where it stands.
    """
    rules = _Rules(schema)
    root = rules.expression(schema, "#")
    return "\n".join((f"root ::= {root}", *rules.lines, JSON_RULES))


class _Rules:
    """Collects the rules of one schema; an expression is the name of a rule or stands in brackets."""

    def __init__(self, document: Any) -> None:
        self.lines: list[str] = []
        self._document = document
        self._references: dict[str, str] = {}

    def expression(self, schema: Any, place: str) -> str:
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            raise _refused(f"{json.dumps(schema)[:40]} as a schema", place)
        for problem in _problems(schema):
            raise _refused(problem, place)
        if "$ref" in schema:
            return self._reference(schema["$ref"], place)
        if "const" in schema or "enum" in schema:
            return _values([schema["const"]] if "const" in schema else schema["enum"])
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                inner = schema[keyword]
                return _either(
                    self.expression(one, f"{place}/{keyword}/{number}") for number, one in enumerate(inner)
                )
        kinds = schema.get("type", _inferred(schema))
        kinds = kinds if isinstance(kinds, list) else [kinds]
        return _either(self._typed(kind, schema, place) for kind in kinds)

    def _typed(self, kind: Any, schema: Mapping[str, Any], place: str) -> str:
        if kind == "object":
            return self._object(schema, place)
        if kind == "array":
            return self._array(schema, place)
        if kind == "string":
            return _string(schema, place)
        if kind == "integer":
            return _integer(schema, place)
        if kind in ("value", "number", "boolean"):
            return str(kind)
        if kind == "null":
            return '"null"'
        raise _refused(f"type {json.dumps(kind)[:40]}", place)

    def _rule(self, body: str) -> str:
        name = f"rule{len(self.lines)}"
        self.lines.append(f"{name} ::= {body}")
        return name

    def _reference(self, reference: str, place: str) -> str:
        if reference not in self._references:
            target = self._resolve(reference, place)
            name = self._references[reference] = f"reference{len(self._references)}"
            self.lines.append(f"{name} ::= {self.expression(target, reference)}")
        return self._references[reference]

    def _resolve(self, reference: str, place: str) -> Any:
        found = self._document
        for part in reference.removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        if found is None or not reference.startswith("#"):
            raise _refused(f"$ref {reference!r}, which the schema does not hold,", place)
        return found

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        """Rules `rest`, with a comma before each property, and `first`, while none has come."""
        rest, first = self._additional(schema, place)
        for name, inner in reversed(list(schema.get("properties", {}).items())):
            value = self.expression(inner, f"{place}/properties/{name}")
            member = self._rule(f'{literal(json.dumps(name, ensure_ascii=False))} space ":" space {value}')
            if name in schema.get("required", ()):
                first = self._rule(f"{member} {rest}")
                rest = self._rule(f"{COMMA} {member} {rest}")
            else:
                first = self._rule(f"{member} {rest} | {first}")
                rest = self._rule(f"({COMMA} {member})? {rest}")
        return self._rule(f'"{{" space {first} space "}}"')

    def _additional(self, schema: Mapping[str, Any], place: str) -> tuple[str, str]:
        allowed = schema.get("additionalProperties", False)
        if allowed is False:
            return '""', '""'
        member = f'string space ":" space {self.expression(allowed, f"{place}/additionalProperties")}'
        rest = self._rule(f"({COMMA} {member})*")
        return rest, self._rule(f'({member} {rest}) | ""')

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        before = [
            self.expression(one, f"{place}/prefixItems/{number}")
            for number, one in enumerate(schema.get("prefixItems", []))
        ]
        items = schema.get("items", not before)
        item = None if items is False else self.expression(items, f"{place}/items")
        least = max(schema.get("minItems", 0) - len(before), 0)
        most = schema["maxItems"] - len(before) if "maxItems" in schema else None
        if (most is not None and most < least) or (item is None and least):
            raise _refused("numbers of items that no array has", place)
        inside = f" {COMMA} ".join(before)
        if item is not None and most != 0:
            inside = _items(inside, item, least, most)
        return self._rule(f'"[" space {inside} space "]"')


def _items(before: str, item: str, least: int, most: int | None) -> str:
    if before:
        return f"{before} ({COMMA} {item}){_count(least, most)}"
    several = f"{item} ({COMMA} {item}){_count(max(least - 1, 0), None if most is None else most - 1)}"
    return several if least else f"({several})?"


def _string(schema: Mapping[str, Any], place: str) -> str:
    if "pattern" in schema:
        rule = pattern_rule(schema["pattern"])
        if rule is None:
            raise _refused("this pattern", place)
        return f'("\\"" ({rule}) "\\"")'
    if any(name in schema for name in LENGTHS):
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if least < 0 or (most is not None and most < least):
            raise _refused("lengths that no string has", place)
        return f'("\\"" counted{_count(least, most)} "\\"")'
    form = FORMATS.get(schema.get("format", ""))
    return f'("\\"" {form} "\\"")' if form else "string"


def _integer(schema: Mapping[str, Any], place: str) -> str:
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf) + 1)
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - 1)
    if high == math.inf and low in (-math.inf, 0, 1):
        return {0: "natural", 1: "positive"}.get(int(low), "integer") if low >= 0 else "integer"
    if not 0 <= high - low < MOST_RANGE_VALUES:
        raise _refused(f"a range of other than 1 to {MOST_RANGE_VALUES} integers", place)
    return _values(list(range(math.ceil(low), math.floor(high) + 1)))


def _count(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _values(values: Sequence[Any]) -> str:
    return _either(literal(json.dumps(value, ensure_ascii=False)) for value in values)


def _either(expressions: Iterator[str]) -> str:
    found = list(expressions)
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


def _inferred(schema: Mapping[str, Any]) -> str:
    return next((kind for kind, keywords in BY_TYPE.items() if schema.keys() & set(keywords)), "value")


def _problems(schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name} of this kind" for name, kind in TYPES.items() if not _is(schema, name, kind))
    yield from sorted(PASSED_OVER & schema.keys())
    for keyword in WHOLE:
        if keyword in schema:
            allowed = {keyword, "type"} if keyword in ("const", "enum") else {keyword}
            yield from (f"{other} beside {keyword}" for other in sorted(KNOWN & schema.keys() - allowed))
    if len(schema.get("allOf", [0])) != 1:
        yield "allOf of other than one schema"
    if [] in (schema.get("enum"), schema.get("anyOf"), schema.get("oneOf"), schema.get("type")):
        yield "an empty list"
    if "pattern" in schema or "format" in schema:
        yield from (f"{name} beside pattern or format" for name in LENGTHS if name in schema)
    if schema.get("type") == "number":
        yield from (f"{name} of a number that is no integer" for name in RANGE if name in schema)
    if "type" in schema and not all(_has_type(value, schema["type"]) for value in schema.get("enum", ())):
        yield "an enum with values of other types"
    for name in schema.get("required", ()):
        if not isinstance(name, str) or name not in schema.get("properties", {}):
            yield f"required of {name!r}, which properties does not name,"


def _has_type(value: Any, kinds: Any) -> bool:
    named = kinds if isinstance(kinds, list) else [kinds]
    return any(isinstance(kind, str) and type(value) in VALUES_OF.get(kind, ()) for kind in named)


def _is(schema: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> bool:
    return name not in schema or isinstance(schema[name], kind)


def _refused(what: str, place: str) -> RequestRefused:
    return RequestRefused(
        f"guided_decoding_guide: this engine cannot hold an answer to {what} at {place}.",
        status=Status.UNSUPPORTED,
        code="schema_not_enforced",
    )
