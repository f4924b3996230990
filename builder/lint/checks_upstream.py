"""Checks of upstream's llmapi text model and of models for vLLM's own backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from builder.compat import newest_container
from builder.lint.checks_engine import check_devices, is_driven_from_python, template_tensors
from builder.lint.repository import Model, Repository, line_of, type_name
from builder.lint.rules import RULES, Finding
from builder.llm_args import wrong_arguments

MODEL_YAML = "model.yaml"
VLLM_ARGUMENTS = "model.json"
PREFIX = "sampling_param_"
NEEDED = {"input": ("text_input",), "output": ("text_output",)}
NOT_FOR_LLM = ("triton_config", "logits_post_processors")
NEWEST_LLM = "1.3"
WITH_ADDED_NAMES = f"{PREFIX}logits_post_processor_name"  # read by upstream's code, declared by users
KIND_MODEL = "KIND_MODEL"


def check_upstream(model: Model, repository: Repository) -> Iterator[Finding]:
    if model.config.backend == "vllm":
        yield from _vllm(model, repository)
    elif is_llmapi(model):
        yield from _llmapi(model, repository)


def is_llmapi(model: Model) -> bool:
    """Whether a model is upstream's llmapi text model, by its files or by the names of its inputs."""
    if model.config.backend != "python" or model.is_engine:
        return False
    has_file = any((folder / MODEL_YAML).is_file() for folder in model.served)
    return has_file or any(tensor.name.startswith(PREFIX) for tensor in model.config.input)


def _llmapi(model: Model, repository: Repository) -> Iterator[Finding]:
    if model.config.max_batch_size > 0:
        message = f"max_batch_size is {model.config.max_batch_size}, allowed is 0"
        yield model.find("EW704", message, at="max_batch_size")
    yield from _contract(model)
    yield from check_devices(model)
    decoupled = model.is_decoupled
    for folder in model.served:
        if (folder / MODEL_YAML).is_file() or not is_driven_from_python(model):
            yield from _model_yaml(model, folder / MODEL_YAML, repository)
    if not decoupled:
        yield model.find("EW705", f"{model.name} is not decoupled in config.pbtxt")


def _contract(model: Model) -> Iterator[Finding]:
    for kind, needed in NEEDED.items():
        declared, contract = model.tensors(kind), template_tensors("llmapi")[kind]
        for name in needed:
            if name not in declared:
                yield model.find("EW706", f"{kind} {name} is missing")
        for name, tensor in declared.items():
            if name == WITH_ADDED_NAMES:
                continue
            if name not in contract:
                yield model.find("EW706", f"{kind} {name} is not a tensor of upstream's model", at=name)
                continue
            types, rank = contract[name]
            found = type_name(tensor).removeprefix("TYPE_")
            if found not in types or len(tensor.dims) != rank:
                message = (
                    f"{kind} {name} is {found} with {len(tensor.dims)} dimensions, not {types[0]} with {rank}"
                )
                yield model.find("EW706", message, at=name)


def _model_yaml(model: Model, path: Path, repository: Repository) -> Iterator[Finding]:
    file = model.name_of(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        yield Finding(RULES["EW701"], file, mark.line + 1 if mark else 1, f"not readable: {error}")
        return
    if not isinstance(document, dict) or not isinstance(document.get("model"), str):
        yield Finding(RULES["EW701"], file, 1, "it is no mapping with a model")
        return
    yield from _llm_arguments(document, text, file, repository)
    yield from _triton_config(model, document.get("triton_config") or {}, text, file)
    yield from _checkpoint(document["model"], text, file, repository)


def _llm_arguments(
    document: dict[str, Any], text: str, file: str, repository: Repository
) -> Iterator[Finding]:
    """Where the version is not known, only what no version takes is reported."""
    arguments = {name: value for name, value in document.items() if name not in NOT_FOR_LLM}
    given = repository.options.trtllm_version
    versions = [given] if given else [newest_container().tensorrt_llm, NEWEST_LLM]
    wrong = [dict(wrong_arguments(arguments, version)) for version in versions]
    for name, error in wrong[0].items():
        if all(name in others for others in wrong):
            hint = f" ({error.hint})" if error.hint else ""
            at = line_of(text, f"{name.rsplit('.', 1)[-1]}:")
            yield Finding(RULES["EW702"], file, at, f"{error.what}{hint}", name)
    yield from _remote_code(arguments, text, file)


def _remote_code(arguments: dict[str, Any], text: str, file: str) -> Iterator[Finding]:
    if arguments.get("trust_remote_code"):
        at = line_of(text, "trust_remote_code")
        yield Finding(RULES["EW411"], file, at, "trust_remote_code is on", "trust_remote_code")


def _triton_config(model: Model, config: Any, text: str, file: str) -> Iterator[Finding]:
    if not isinstance(config, dict):
        yield Finding(RULES["EW703"], file, line_of(text, "triton_config"), "triton_config is no mapping")
        return
    batch = config.get("max_batch_size", 0)
    if batch != 0:
        at = line_of(text, "max_batch_size:")
        yield Finding(
            RULES["EW704"], file, at, f"max_batch_size is {batch!r}, allowed is 0", "max_batch_size"
        )
    if model.is_decoupled and config.get("decoupled") is False:
        message = "decoupled is false here, but true in config.pbtxt"
        yield Finding(RULES["EW703"], file, line_of(text, "decoupled:"), message, "decoupled")


def _checkpoint(given: str, text: str, file: str, repository: Repository) -> Iterator[Finding]:
    """A path must be there; a hub id may be anywhere."""
    is_path = given.startswith(("/", ".", "~"))
    if repository.options.check_paths and is_path and not Path(given).expanduser().is_dir():
        yield Finding(RULES["EW707"], file, line_of(text, given), f"there is no folder {given}", given)


def _vllm(model: Model, repository: Repository) -> Iterator[Finding]:
    if model.config.max_batch_size > 0 or model.config.HasField("dynamic_batching"):
        yield model.find("EW802", "vLLM batches by itself", at="max_batch_size")
    for folder in model.served:
        yield from _vllm_arguments(model, folder, repository)


def _vllm_arguments(model: Model, folder: Path, repository: Repository) -> Iterator[Finding]:
    path = folder / VLLM_ARGUMENTS
    file = model.name_of(path)
    try:
        text = path.read_text(encoding="utf-8")
        arguments = json.loads(text)
    except (OSError, ValueError) as error:
        yield Finding(RULES["EW409"], file, getattr(error, "lineno", 1), f"not readable: {error}")
        return
    if not isinstance(arguments, dict) or not isinstance(arguments.get("model"), str):
        yield Finding(RULES["EW409"], file, 1, "it is no object with a model")
        return
    yield from _vllm_ranges(arguments, text, file)
    yield from _vllm_gpus(model, arguments)
    yield from _remote_code(arguments, text, file)
    yield from _checkpoint(arguments["model"], text, file, repository)
    if str(arguments.get("enable_lora", "")).lower() == "true":
        yield from _adapters(model, folder)


def _vllm_ranges(arguments: dict[str, Any], text: str, file: str) -> Iterator[Finding]:
    counts = ("tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs", "max_model_len")
    for name in counts:
        value = arguments.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            message = f"{name} is {value!r}, allowed is a whole number of 1 or more"
            yield Finding(RULES["EW804"], file, line_of(text, name), message, name)
    share = arguments.get("gpu_memory_utilization")
    if share is not None and not (isinstance(share, (int, float)) and 0 < share <= 1):
        message = f"gpu_memory_utilization is {share!r}, allowed is a number over 0, up to 1"
        at = line_of(text, "gpu_memory_utilization")
        yield Finding(RULES["EW804"], file, at, message, "gpu_memory_utilization")


def _vllm_gpus(model: Model, arguments: dict[str, Any]) -> Iterator[Finding]:
    sizes = [arguments.get(f"{kind}_parallel_size") for kind in ("tensor", "pipeline")]
    groups = model.config.instance_group
    kinds = {group.Kind.Name(group.kind) for group in groups} or {"no instance_group"}
    if any(isinstance(size, int) and size > 1 for size in sizes) and kinds != {KIND_MODEL}:
        message = f"the model takes several GPUs, but its instances have {', '.join(sorted(kinds))}"
        yield model.find("EW801", message, at="instance_group")


def _adapters(model: Model, folder: Path) -> Iterator[Finding]:
    path = folder / "multi_lora.json"
    try:
        adapters = json.loads(path.read_text(encoding="utf-8"))
        message = "" if isinstance(adapters, dict) and adapters else "it names no adapters"
    except (OSError, ValueError) as error:
        message = f"not readable: {error}"
    if message:
        yield Finding(RULES["EW803"], model.name_of(path), 1, message)
