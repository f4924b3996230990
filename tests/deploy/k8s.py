"""The committed overlays as objects, edits of them, and configs to render."""

from __future__ import annotations

import copy
import functools
from typing import Any

from common.config import DeployConfig, parse_config
from runtime.k8s.build import kustomize
from runtime.k8s.examples import EXAMPLES
from runtime.k8s.manifests import Manifests, name_of, parse_manifests
from runtime.k8s.overlay import TREE
from runtime.k8s.values import Values, parse_values

REMOVED = object()
HF = EXAMPLES / "single-gpu" / "model"


@functools.cache
def overlay(name: str) -> Manifests:
    """An overlay of deploy/k8s as the cluster gets it; not to be changed."""
    return parse_manifests(kustomize(TREE / "overlays" / name), name)


def changed(name: str, target: str, path: str, value: Any) -> Manifests:
    """A copy of an overlay with one field of `target` (Kind/name) set, or REMOVED.

    `path` is separated by slashes; in lists a part is the name of an item, or its index. Without a path the
    object itself is replaced or removed.
    """
    objects = copy.deepcopy(overlay(name).objects)
    matches = [item for item in objects if name_of(item).startswith(target)]
    assert matches, f"{name} has no {target}"
    if not path:
        kept = tuple(item for item in objects if item is not matches[0])
        return Manifests(kept if value is REMOVED else (*kept, value))
    _set(matches[0], path.split("/"), value)
    return Manifests(objects)


def added(name: str, *documents: dict[str, Any]) -> Manifests:
    return Manifests((*overlay(name).objects, *documents))


def _set(document: Any, path: list[str], value: Any) -> None:
    """`~` stands for a slash inside a key; `+` appends to a list."""
    *parents, last = (part.replace("~", "/") for part in path)
    for part in parents:
        document = _child(document, part)
    key = last if isinstance(document, dict) else _index(document, last)
    if value is REMOVED:
        del document[key]
    elif key == "+":
        document.append(value)
    else:
        document[key] = value


def _child(document: Any, part: str) -> Any:
    return document.setdefault(part, {}) if isinstance(document, dict) else document[_index(document, part)]


def _index(items: list[Any], part: str) -> Any:
    if part == "+":
        return part
    if part.isdigit():
        return int(part)
    return next(i for i, item in enumerate(items) if part in (item.get("name"), item.get("mountPath")))


def config(engine: str = "cuda-trt", tp: int = 1, pp: int = 1, **changes: Any) -> DeployConfig:
    model = {"engine": engine, "model_path": "models/m", "dtype": "bfloat16", "max_input_len": 2048}
    sizes = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp, "max_output_len": 1024}
    return parse_config({"models": {"m": {**model, **sizes, **changes}}})


def values(*settings: str) -> Values:
    return parse_values((f"plan_from={HF}", "source=org/model", "gpu=L40S", *settings))
