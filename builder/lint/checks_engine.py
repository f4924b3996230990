"""Checks of the engine model: parameters and tensors of the TensorRT-LLM backend, and its engine folder."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from builder.lint.parameters import BOOLEAN, KINDS, LOOKAHEAD, UNGUARDED
from builder.lint.repository import PLACEHOLDER, Model, Repository, type_name
from builder.lint.rules import Finding
from builder.pbtxt import CONFIG_NAME, TEMPLATES

TENSOR_LINE = re.compile(
    r'^(input|output) \{ name: "(\w+)" data_type: TYPE_(\w+|\{\{.*?\}\}) dims: \[ (.*?) \]'
)
FLOATS = ("FP16", "BF16", "FP32")
NEEDED = {"input": ("input_lengths", "request_output_len"), "output": ("output_ids", "sequence_length")}
MUST_FILL = {True: ("gpt_model_type", "gpt_model_path"), False: ("tokenizer_dir",)}


def check_engine(model: Model, repository: Repository) -> Iterator[Finding]:
    yield from _left_placeholders(model)
    yield from _container(model, repository.options.flavour)
    if not model.is_engine:
        return
    yield from _parameters(model)
    yield from _combinations(model)
    for kind in ("input", "output"):
        yield from _contract(model, kind)
    if not model.is_decoupled:
        yield model.find("EW310", f"{model.name} is not decoupled", at="decoupled")
    if repository.options.check_paths and model.config.backend == "tensorrtllm":
        yield from _engine_folder(model, repository)


def _left_placeholders(model: Model) -> Iterator[Finding]:
    for key in sorted(model.config.parameters):
        left = PLACEHOLDER.search(model.parameter(key) or "")
        if left:
            rule = "EW103" if key in MUST_FILL[model.is_engine] else "EW109"
            yield model.find(rule, f"{left[0]} is not filled in {key}", at=left[0], subject=key)


def _parameters(model: Model) -> Iterator[Finding]:
    for key in UNGUARDED:
        if model.parameter(key) is None:
            enough = "" if key == "gpt_model_type" else "; an empty value is enough"
            yield model.find("EW301", f"{key} is missing{enough}", subject=key)
    for key in sorted(model.config.parameters):
        yield from _parameter(model, key, model.parameter(key) or "")


def _parameter(model: Model, key: str, value: str) -> Iterator[Finding]:
    kind = KINDS.get(key)
    if kind is None:
        near = difflib.get_close_matches(key, KINDS, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        yield model.find("EW304", f"{key} is not a parameter of the backend{hint}", at=key)
    elif value and not PLACEHOLDER.search(value) and not kind.accepts(value):
        rule = "EW303" if kind is BOOLEAN else "EW302"
        yield model.find(rule, f"{key} is {value!r}, but takes {kind.described}", at=key)


def _combinations(model: Model) -> Iterator[Finding]:
    batching = model.parameter("gpt_model_type") or ""
    if batching.lower() == "v1":
        yield model.find("EW305", f"gpt_model_type is {batching}", at="gpt_model_type")
    if model.parameter("gpt_model_type") == "":
        yield model.find("EW302", "gpt_model_type is empty", at="gpt_model_type")
    missing = [key for key in LOOKAHEAD if not model.parameter(key)]
    if model.parameter("decoding_mode") == "lookahead" and missing:
        yield model.find("EW309", f"lookahead without {', '.join(missing)}", at="decoding_mode")
    if model.parameter("guided_decoding_backend") and not model.parameter("xgrammar_tokenizer_info_path"):
        message = "guided_decoding_backend without xgrammar_tokenizer_info_path"
        yield model.find("EW314", message, at="guided_decoding_backend")
    yield from check_devices(model)


def check_devices(model: Model) -> Iterator[Finding]:
    sets = _device_sets(model)
    if model.instances > 1 and len(sets) != model.instances:
        message = f"{model.instances} instances, but gpu_device_ids names {len(sets)} sets of GPUs"
        yield model.find("EW313", message, at="instance_group")


def _device_sets(model: Model) -> list[list[str]]:
    value = model.parameter("gpu_device_ids") or ""
    return [part.split(",") for part in value.split(";")] if value and "$" not in value else []


def _contract(model: Model, kind: str) -> Iterator[Finding]:
    declared, contract = model.tensors(kind), template_tensors("tensorrt_llm")[kind]
    for name in NEEDED[kind]:
        if name not in declared:
            yield model.find("EW312", f"{kind} {name} is missing")
    for name, tensor in declared.items():
        if name not in contract:
            near = difflib.get_close_matches(name, contract, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            message = f"{kind} {name} is not a tensor of the backend{hint}"
            yield model.find("EW311", message, at=name)
        else:
            yield from _tensor(model, kind, tensor, *contract[name])


def _tensor(model: Model, kind: str, tensor: Any, types: tuple[str, ...], rank: int) -> Iterator[Finding]:
    found = type_name(tensor).removeprefix("TYPE_")
    if found not in types:
        message = f"{kind} {tensor.name} is {found}, but the backend takes {' or '.join(types)}"
        yield model.find("EW311", message, at=tensor.name)
    if len(tensor.dims) != rank:
        message = f"{kind} {tensor.name} has {len(tensor.dims)} dimensions, but the backend takes {rank}"
        yield model.find("EW311", message, at=tensor.name)


@cache
def template_tensors(kind: str) -> dict[str, dict[str, tuple[tuple[str, ...], int]]]:
    """Upstream's tensors as our own template has them: kind -> name -> (types, rank)."""
    tensors: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {"input": {}, "output": {}}
    template = TEMPLATES / kind / f"{CONFIG_NAME}.j2"
    for line in template.read_text(encoding="utf-8").splitlines():
        match = TENSOR_LINE.match(line)
        if match:
            kind, name, found, dims = match.groups()
            types = FLOATS if found.startswith("{{") else (found,)
            tensors[kind][name] = (types, len(dims.split(",")))
    return tensors


def _engine_folder(model: Model, repository: Repository) -> Iterator[Finding]:
    given = model.parameter("gpt_model_path")
    if not given or "${" in given or is_driven_from_python(model):
        return
    config_file = Path(given) / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield model.find("EW306", f"{config_file} is not readable: {error}", at=given)
        return
    ranks = _world_size(config)
    engines = len(list(Path(given).glob("rank*.engine")))
    if engines != ranks:
        message = f"{given} holds {engines} rank*.engine, the engine has {ranks} ranks"
        yield model.find("EW306", message, at=given)
    for devices in _device_sets(model):
        if len(devices) != ranks:
            message = f"gpu_device_ids names {len(devices)} GPUs, the engine has {ranks} ranks"
            yield model.find("EW307", message, at="gpu_device_ids")
    yield from _version(model, config, repository.options.trtllm_version)


def is_driven_from_python(model: Model) -> bool:
    """Whether ew's bridge serves it, under whatever backend name."""
    return any((folder / "worker.json").exists() for folder in model.served)


def _world_size(config: Any) -> int:
    """Ranks of a built engine, of which its config.json tells; 1 where it does not."""
    for key in ("pretrained_config", "mapping", "world_size"):
        config = config.get(key) if isinstance(config, dict) else None
    return config if isinstance(config, int) else 1


def _version(model: Model, config: Any, wanted: str | None) -> Iterator[Finding]:
    built = str(config.get("version", "")) if isinstance(config, dict) else ""
    if wanted and built and built != wanted:
        yield model.find("EW308", f"the engine is of TensorRT-LLM {built}, the container of {wanted}")


def _container(model: Model, flavour: str | None) -> Iterator[Finding]:
    needs = {"tensorrtllm": "trtllm", "vllm": "vllm"}.get(model.config.backend)
    if flavour is not None and needs not in (None, flavour) and not is_driven_from_python(model):
        message = f"backend {model.config.backend} is in the {needs} containers only"
        yield model.find("EW315", message, at="backend")
