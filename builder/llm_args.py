"""`llm_args.json`: the arguments of tensorrt_llm.LLM, checked against the names and types it accepts."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from packaging.version import Version

from builder.data import load
from builder.manifest import Layout, Sizes
from common.errors import UsageError

OWNED = ("model", "tokenizer", "revision", "dtype", "tensor_parallel_size", "pipeline_parallel_size",
         "max_batch_size", "max_input_len", "max_seq_len")  # fmt: skip
REFUSED = {
    "trust_remote_code": "It would run code that came with the weights.",
    "backend": "The PyTorch runtime is the only one here.",
    "build_config": "There is no engine to build.",
}
KV_FRACTION = 0.9
SIMPLE_TYPES: dict[str, type | tuple[type, ...]] = {
    "bool": bool, "int": int, "float": (int, float), "str": str, "dict": dict, "list": list,
}  # fmt: skip


def contract(tensorrt_llm: str) -> dict[str, Any]:
    """Names and types of a version: the 1.2 generation, or the newest known for 1.3 and later."""
    era = "1.2" if Version(tensorrt_llm).release < (1, 3) else "newest"
    document: dict[str, Any] = load("llm_args")[era]
    return document


def make_llm_args(
    model: str, revision: str | None, layout: Layout, sizes: Sizes, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments that load the Hugging Face checkpoint `model` itself; nothing is converted or built."""
    kv_cache = {"free_gpu_memory_fraction": KV_FRACTION, "enable_block_reuse": True}
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": layout.dtype,
        "tensor_parallel_size": layout.tp_size,
        "pipeline_parallel_size": layout.pp_size,
        "max_batch_size": sizes.max_batch_size,
        "max_input_len": sizes.max_input_len,
        "max_seq_len": sizes.max_seq_len,
        "kv_cache_config": kv_cache | dict(options.get("kv_cache_config", {})),
    }
    if revision:
        arguments["revision"] = revision
    return arguments | {name: value for name, value in options.items() if name != "kv_cache_config"}


def parse_llm_options(arguments: Sequence[str], tensorrt_llm: str) -> dict[str, Any]:
    """Read `--name value` or `--name=value`; values are JSON where they parse, else text.

    `--kv_cache_config.free_gpu_memory_fraction 0.8` reaches into a part.

    Raises:
        UsageError: unknown to this version (names the nearest), set by convert-trt, or of another type.
    """
    options: dict[str, Any] = {}
    rest = [argument for argument in arguments if argument != "--"]
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            raise UsageError(
                f"Unexpected argument {token!r}.", hint="Options start with --.", code="bad_option"
            )
        name, has_value, text = token[2:].partition("=")
        if not has_value:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        name, _, part = name.replace("-", "_").partition(".")
        value = _value(text)
        options[name] = {**options.get(name, {}), part: value} if part else value
    check_llm_options(options, tensorrt_llm)
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_llm_options(options: Mapping[str, Any], tensorrt_llm: str) -> None:
    """Refuse names and types that tensorrt_llm.LLM of this version would refuse."""
    for name in options:
        if name in OWNED:
            raise UsageError(f"--{name} is set by convert-trt's own options.", code="owned_option")
        if name in REFUSED:
            raise UsageError(f"--{name} is not passed on.", why=REFUSED[name], code="refused_option")
    for _, error in wrong_arguments(options, tensorrt_llm):
        raise error


def wrong_arguments(arguments: Mapping[str, Any], tensorrt_llm: str) -> Iterator[tuple[str, UsageError]]:
    """What tensorrt_llm.LLM of this version would refuse: (name, error); parts are named a.b."""
    known = contract(tensorrt_llm)
    fields = {name: known["fields"][name] for name in known["names"]}
    parts = arguments.get("kv_cache_config")
    inner = parts if isinstance(parts, Mapping) else {}
    for inside, values, allowed in (
        ("", arguments, fields),
        ("kv_cache_config.", inner, known["kv_cache_config"]),
    ):
        for name, value in values.items():
            try:
                _check_name(name, allowed, tensorrt_llm, inside)
                _check_type(f"{inside}{name}", value, allowed[name]["type"])
            except UsageError as error:
                yield f"{inside}{name}", error


def _check_name(name: str, known: Mapping[str, Any], version: str, inside: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, list(known), n=1)
    raise UsageError(
        f"tensorrt_llm.LLM of {version} has no argument {inside}{name}.",
        hint=f"Did you mean --{inside}{near[0]}?" if near else "See ew convert-trt --help.",
        code="unknown_option",
    )


def _check_type(name: str, value: Any, declared: str) -> None:
    """Compare with the types of the contract."""
    optional = re.fullmatch(r"Optional\[(.*)\]", declared)
    inner = optional[1] if optional else declared
    if value is None and optional:
        return
    if any(_is_of(value, part.strip()) for part in inner.split(" / ")):
        return
    allowed = re.findall(r"'([^']*)'", inner)
    raise _bad_value(name, value, f"one of {', '.join(allowed)}" if allowed else declared)


def _is_of(value: Any, kind: str) -> bool:
    """Whether a JSON value fits one type of the contract; classes take an object, enumerations a name."""
    if kind.startswith("Literal["):
        return value in re.findall(r"'([^']*)'", kind)
    simple = SIMPLE_TYPES.get(kind.split("[", 1)[0].lower())
    if simple is None:
        return isinstance(value, dict)
    if isinstance(value, bool):
        return simple is bool
    return isinstance(value, simple)


def _bad_value(name: str, value: Any, wanted: str) -> UsageError:
    return UsageError(
        f"--{name} cannot be {json.dumps(value)}.", hint=f"Give {wanted}.", code="bad_option_value"
    )
