"""Checks of any model's config.pbtxt: names, versions, batching, instances, dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from builder.lint.repository import Model, Repository
from builder.lint.rules import Finding

LARGEST_BATCH = 2**20


def check_config(model: Model, repository: Repository) -> Iterator[Finding]:
    yield from _identity(model)
    yield from _batching(model)
    yield from _instances(model)
    for kind in ("input", "output"):
        yield from _tensors(model, kind)


def _identity(model: Model) -> Iterator[Finding]:
    config = model.config
    if config.name and config.name != model.name:
        message = f"the name is {config.name}, the folder {model.name}"
        yield model.find("EW104", message, at=config.name)
    if not model.versions:
        yield model.find("EW105", f"{model.name} has no numbered version folder")
    found = {int(path.name) for path in model.versions}
    for version in config.version_policy.specific.versions:
        if version not in found:
            yield model.find("EW110", f"there is no version {version}", at="version_policy")
    if not config.backend and not config.platform and not config.HasField("ensemble_scheduling"):
        yield model.find("EW106", f"{model.name} has neither backend nor platform")


def _batching(model: Model) -> Iterator[Finding]:
    config = model.config
    largest = config.max_batch_size
    if not 0 <= largest <= LARGEST_BATCH:
        yield model.find("EW203", f"max_batch_size is {largest}, allowed is 0 or more", at="max_batch_size")
    batches = config.HasField("dynamic_batching")
    for size in config.dynamic_batching.preferred_batch_size:
        if size > largest > 0:
            message = f"preferred_batch_size {size} is over max_batch_size {largest}"
            yield model.find("EW201", message, at="preferred_batch_size")
        if size < 1:
            yield model.find("EW203", f"preferred_batch_size is {size}, allowed is 1 or more")
    if largest == 0:
        yield from _batching_without_batches(model, batches)


def _batching_without_batches(model: Model, batches: bool) -> Iterator[Finding]:
    if batches:
        yield model.find("EW202", "dynamic_batching with max_batch_size 0", at="dynamic_batching")
    scalars = [t.name for t in model.config.input if t.HasField("reshape") and not t.reshape.shape]
    if scalars:
        yield model.find("EW202", f"{scalars[0]} is a scalar, but max_batch_size is 0", at=scalars[0])


def _instances(model: Model) -> Iterator[Finding]:
    if model.is_ensemble and model.config.instance_group:
        yield model.find("EW513", f"{model.name} is an ensemble with an instance_group", at="instance_group")
    for group in model.config.instance_group:
        if group.count < 0:
            message = f"the instance count is {group.count}, allowed is 1 or more"
            yield model.find("EW203", message, at="instance_group")


def _tensors(model: Model, kind: str) -> Iterator[Finding]:
    tensors: list[Any] = list(getattr(model.config, kind))
    for name, count in Counter(tensor.name for tensor in tensors).items():
        if count > 1:
            yield model.find("EW107", f"{kind} {name} is declared {count} times", at=name)
    for tensor in tensors:
        wrong = [size for size in tensor.dims if size < 1 and size != -1]
        if wrong:
            yield model.find("EW204", f"{kind} {tensor.name} has dimension {wrong[0]}", at=tensor.name)
