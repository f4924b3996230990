"""The options of trtllm-build: what may be passed through convert-trt, checked before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.data import load
from builder.manifest import Layout, Sizes
from common.errors import UsageError

BuildOptions = dict[str, list[str]]

# options that convert-trt sets itself, and what to use instead
OWNED = {
    "checkpoint_dir": "convert-trt builds its own checkpoint; use --model.",
    "model_config": "convert-trt builds its own checkpoint; use --model.",
    "build_config": "It would replace all size options; pass them one by one.",
    "output_dir": "Use --output.",
    "max_batch_size": "Use --max-batch-size.",
    "max_input_len": "Use --max-input-len.",
    "max_seq_len": "It is --max-input-len plus --max-output-len; use these.",
    "max_decoder_seq_len": "It is --max-input-len plus --max-output-len; use these.",
    "workers": "It follows from the GPUs that are there and the ranks to build.",
    "output_timing_cache": "The timing cache is kept in the package.",
    "dry_run": "Use --dry-run.",
}
# stated on every command line, so that log and manifest show them; all but gemm_plugin are the defaults
STATED: BuildOptions = {
    "gpt_attention_plugin": ["auto"],
    "gemm_plugin": ["auto"],
    "context_fmha": ["enable"],
    "remove_input_padding": ["enable"],
    "use_paged_context_fmha": ["enable"],
    "kv_cache_type": ["paged"],
    "tokens_per_block": ["32"],
    "max_beam_width": ["1"],
    "max_num_tokens": ["8192"],
}


@dataclass(frozen=True)
class Flag:
    """One option of trtllm-build; `kind` is str, int, enum or store_true."""

    name: str
    kind: str
    choices: tuple[str, ...]
    many: bool
    note: str


def flags() -> dict[str, Flag]:
    """All options by name without dashes; aliases lead to the same flag."""
    known = {}
    for row in load("trtllm_build_flags")["flags"]:
        name = row["flag"].lstrip("-")
        choices = tuple(row.get("choices") or ())
        flag = Flag(name, row["type"], choices, row.get("nargs") == "+", row.get("note", ""))
        known.update(dict.fromkeys([name, *(alias.lstrip("-") for alias in row.get("aliases", []))], flag))
    return known


def parse_build_options(arguments: Sequence[str], own_options: Sequence[str] = ()) -> BuildOptions:
    """Read `--name value`, `--name=value` and switches; dashes and underscores in names are the same.

    Args:
        arguments: what convert-trt did not understand itself.
        own_options: convert-trt's options, for the nearest-match of a misspelled one.

    Raises:
        UsageError: unknown (names the nearest), removed, set by convert-trt itself, or a bad value.
    """
    known, options, position = flags(), BuildOptions(), 0
    while position < len(arguments):
        token = arguments[position]
        position += 1
        if token == "--":
            continue
        if not token.startswith("--"):
            raise UsageError(
                f"Unexpected argument {token!r}.", hint="Options start with --.", code="bad_option"
            )
        name, has_value, value = token[2:].partition("=")
        flag = _flag(name.replace("-", "_"), known, own_options)
        values = [value] if has_value else _values(arguments, position, flag)
        position += 0 if has_value else len(values)
        options[flag.name] = _checked(flag, values)
    return options


def _values(arguments: Sequence[str], position: int, flag: Flag) -> list[str]:
    """The arguments that belong to a flag: none for a switch, one, or all up to the next option."""
    following = []
    for argument in arguments[position:]:
        if argument.startswith("--"):
            break
        following.append(argument)
    if flag.kind == "store_true":
        return []
    return following if flag.many else following[:1]


def _flag(name: str, known: Mapping[str, Flag], own_options: Sequence[str]) -> Flag:
    if name in OWNED:
        raise UsageError(f"--{name} cannot be passed to trtllm-build.", why=OWNED[name], code="owned_option")
    if name in known:
        return known[name]
    absent = {row["flag"].lstrip("-"): row["note"] for row in load("trtllm_build_flags")["absent"]}
    if name in absent:
        raise UsageError(f"trtllm-build has no --{name}.", why=f"{absent[name]}.", code="removed_option")
    raise _unknown(name, list(known), own_options)


def _unknown(name: str, known: Sequence[str], own_options: Sequence[str]) -> UsageError:
    own = {option.lstrip("-").replace("-", "_"): option for option in own_options}
    near = difflib.get_close_matches(name, [*known, *own], n=1)
    hint = f"Did you mean {own.get(near[0], '--' + near[0])}?" if near else "See ew convert-trt --help."
    return UsageError(
        f"--{name} is no option of convert-trt and none of trtllm-build.", hint=hint, code="unknown_option"
    )


def _checked(flag: Flag, values: list[str]) -> list[str]:
    if flag.kind == "store_true":
        if values:
            raise UsageError(f"--{flag.name} is a switch and takes no value.", code="bad_option_value")
        return values
    if not values:
        raise UsageError(f"--{flag.name} needs a value.", hint=_allowed(flag), code="bad_option_value")
    for value in values:
        bad_number = flag.kind == "int" and not value.isdigit()
        if bad_number or (flag.choices and value not in flag.choices):
            raise UsageError(
                f"--{flag.name} cannot be {value!r}.", hint=_allowed(flag, value), code="bad_option_value"
            )
    if flag.name == "streamingllm" and values == ["enable"]:
        raise UsageError("trtllm-build no longer supports streamingllm.", code="bad_option_value")
    return values


def _allowed(flag: Flag, value: str = "") -> str:
    if not flag.choices:
        return "Give a whole number." if flag.kind == "int" else "Give a value."
    near = difflib.get_close_matches(value, flag.choices, n=1)
    return (f"Did you mean {near[0]}? " if near else "") + f"Allowed: {', '.join(flag.choices)}."


def build_arguments(
    checkpoint: str, output: str, layout: Layout, sizes: Sizes, options: BuildOptions, *, gpus: int
) -> list[str]:
    """The command line of trtllm-build; `checkpoint` and `output` are paths as the builder sees them.

    There is no --max_output_len (max_seq_len is prompt plus answer) and no --tp_size (the checkpoint has it).
    """
    arguments = ["trtllm-build", "--checkpoint_dir", checkpoint, "--output_dir", output]
    arguments += ["--max_batch_size", str(sizes.max_batch_size), "--max_input_len", str(sizes.max_input_len)]
    arguments += ["--max_seq_len", str(sizes.max_seq_len)]
    arguments += ["--workers", str(max(1, min(gpus, layout.world_size)))]
    arguments += ["--output_timing_cache", f"{output}/model.cache"]
    for name, values in options.items():
        arguments += [f"--{name}", *values]
    return arguments


def effective_options(options: BuildOptions, *, quantized: bool) -> BuildOptions:
    """What is passed: the stated defaults with the user's options over them.

    A quantized checkpoint chooses its own GEMM, so gemm_plugin is then left to the builder.
    """
    stated = {name: values for name, values in STATED.items() if not (quantized and name == "gemm_plugin")}
    return {**stated, **options}
