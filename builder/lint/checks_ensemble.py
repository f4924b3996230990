"""Checks of ensembles: the wiring from end to end, as tritonserver checks it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from builder.lint.repository import Model, Repository, type_name
from builder.lint.rules import Finding


@dataclass(frozen=True)
class _Source:
    """Where a tensor of the ensemble comes from."""

    tensor: Any
    described: str
    batches: bool
    decoupled: frozenset[str]  # the decoupled models it comes from


@dataclass
class _Wiring:
    """An ensemble, and what is known about its tensors so far."""

    ensemble: Model
    repository: Repository
    sources: dict[str, _Source] = field(default_factory=dict)
    consumed: set[str] = field(default_factory=set)

    def find(self, rule: str, message: str, at: str) -> Finding:
        return self.ensemble.find(rule, f"{self.ensemble.name}: {message}", at=at)


def check_ensembles(repository: Repository) -> Iterator[Finding]:
    for model in repository.models.values():
        if model.is_ensemble:
            yield from _check(model, repository)


def _check(ensemble: Model, repository: Repository) -> Iterator[Finding]:
    steps = list(ensemble.config.ensemble_scheduling.step)
    if not steps:
        yield ensemble.find("EW515", f"{ensemble.name} has no steps")
        return
    wiring = _Wiring(ensemble, repository)
    batches = ensemble.config.max_batch_size > 0
    for tensor in ensemble.config.input:
        wiring.sources[tensor.name] = _Source(tensor, f"ensemble input {tensor.name}", batches, frozenset())
    yield from _collect_sources(wiring, steps)
    for step in steps:
        yield from _check_step(wiring, step)
    yield from _check_ends(wiring, steps)


def _collect_sources(wiring: _Wiring, steps: list[Any]) -> Iterator[Finding]:
    """Steps in the order in which their inputs become known, as Triton runs them."""
    waiting = list(steps)
    while waiting:
        ready = [step for step in waiting if all(name in wiring.sources for name in step.input_map.values())]
        for step in ready or waiting[:1]:
            waiting.remove(step)
            yield from _add_outputs(wiring, step)


def _add_outputs(wiring: _Wiring, step: Any) -> Iterator[Finding]:
    model = wiring.repository.models.get(step.model_name)
    tensors = model.tensors("output") if model else {}
    behind = _decoupled_behind(wiring, step)
    if model is not None and model.is_decoupled:
        behind = frozenset({step.model_name})
    for output, name in step.output_map.items():
        if name in wiring.sources:
            yield wiring.find("EW509", f"{name} is produced twice", name)
            continue
        batches = model is not None and model.config.max_batch_size > 0
        described = f"{step.model_name}'s output {output}"
        wiring.sources[name] = _Source(tensors.get(output), described, batches, behind)


def _decoupled_behind(wiring: _Wiring, step: Any) -> frozenset[str]:
    sources = (wiring.sources.get(name) for name in step.input_map.values())
    return frozenset().union(*(source.decoupled for source in sources if source))


def _check_step(wiring: _Wiring, step: Any) -> Iterator[Finding]:
    name = step.model_name
    wiring.consumed.update(step.input_map.values())
    model = wiring.repository.models.get(name)
    if model is None:
        if name not in wiring.repository.unread:
            yield wiring.find("EW501", f"step {name} is not in the repository", name)
        return
    yield from _check_model(wiring, step, model)
    yield from _check_inputs(wiring, step, model)
    outputs = model.tensors("output")
    for key in step.output_map:
        if key not in outputs:
            yield wiring.find("EW503", f"{name} has no output {key}", key)


def _check_model(wiring: _Wiring, step: Any, model: Model) -> Iterator[Finding]:
    largest, own = model.config.max_batch_size, wiring.ensemble.config.max_batch_size
    if own > largest > 0 or (own > 0 and largest == 0):
        message = f"max_batch_size is {own}, but {model.name} allows {largest}"
        yield wiring.find("EW511", message, "max_batch_size")
    versions = {int(path.name) for path in model.versions}
    if step.model_version > 0 and step.model_version not in versions:
        yield wiring.find("EW514", f"{model.name} has no version {step.model_version}", model.name)
    kinds = {frozenset(wiring.sources[n].decoupled) for n in step.input_map.values() if n in wiring.sources}
    if len(kinds) > 1:
        yield wiring.find("EW512", f"step {model.name} takes tensors of both kinds", model.name)


def _check_inputs(wiring: _Wiring, step: Any, model: Model) -> Iterator[Finding]:
    inputs = model.tensors("input")
    optional = {tensor.name for tensor in wiring.ensemble.config.input if tensor.optional}
    for key, tensor in inputs.items():
        if not tensor.optional and key not in step.input_map:
            yield wiring.find("EW505", f"{model.name}'s input {key} is required, but not mapped", model.name)
    for key, name in step.input_map.items():
        if key not in inputs:
            yield wiring.find("EW502", f"{model.name} has no input {key}", key)
        elif name not in wiring.sources:
            yield wiring.find("EW504", f"nothing produces {name} for {model.name}'s {key}", name)
        else:
            batches = model.config.max_batch_size > 0
            target = _Source(inputs[key], f"{model.name}'s input {key}", batches, frozenset())
            yield from _connection(wiring, wiring.sources[name], target, name)
            if name in optional and not inputs[key].optional:
                yield wiring.find("EW516", f"{name} is optional, {target.described} is not", name)


def _check_ends(wiring: _Wiring, steps: list[Any]) -> Iterator[Finding]:
    config = wiring.ensemble.config
    produced = {name for step in steps for name in step.output_map.values()}
    outputs = {tensor.name: tensor for tensor in config.output}
    for tensor in config.input:
        if tensor.name not in wiring.consumed:
            yield wiring.find("EW508", f"input {tensor.name} is used by no step", tensor.name)
    for name, tensor in outputs.items():
        if name not in produced:
            yield wiring.find("EW508", f"output {name} is made by no step", name)
            continue
        target = _Source(tensor, f"ensemble output {name}", config.max_batch_size > 0, frozenset())
        yield from _connection(wiring, wiring.sources[name], target, name)
    for name in sorted(produced - wiring.consumed - set(outputs)):
        yield wiring.find("EW510", f"{name} is made, but used by no step and no output", name)


def _connection(wiring: _Wiring, source: _Source, target: _Source, name: str) -> Iterator[Finding]:
    if source.tensor is None:
        return
    if source.tensor.data_type != target.tensor.data_type:
        types = type_name(source.tensor), type_name(target.tensor)
        message = f"{source.described} is {types[0]}, {target.described} is {types[1]}"
        yield wiring.find("EW506", message, name)
    elif not _fits(_shape(source), _shape(target)):
        message = f"{source.described} is {_shape(source)}, {target.described} is {_shape(target)}"
        yield wiring.find("EW507", message, name)


def _shape(end: _Source) -> list[int]:
    """Dimensions with the batch, as Triton compares them."""
    return [*([-1] if end.batches else []), *end.tensor.dims]


def _fits(first: list[int], second: list[int]) -> bool:
    if len(first) != len(second):
        return False
    return all(a == b or -1 in (a, b) for a, b in zip(first, second, strict=True))
