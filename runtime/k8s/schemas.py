"""Objects against the schemas of Kubernetes' versions, by the package kubernetes-validate where it is."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from runtime.k8s import structure
from runtime.k8s.manifests import Manifests, name_of
from runtime.k8s.pods import Document
from runtime.k8s.policy import Finding

NEWEST = 3
SCHEMA, STRUCTURE, UNKNOWN = "schema", "structure", "unknown-kind"


def validator() -> ModuleType | None:
    """kubernetes-validate; None where it is not installed."""
    try:
        return importlib.import_module("kubernetes_validate")
    except ImportError:
        return None


def newest_versions(module: Any) -> list[str]:
    """The newest versions it has, as 1.37, newest last."""
    names = dict.fromkeys(".".join(str(version).split(".")[:2]) for version in module.utils.all_versions())
    return list(names)[-NEWEST:]


def schema_findings(manifests: Manifests, module: Any, versions: list[str]) -> list[Finding]:
    """Every core object, and every pod template of a custom one, against each version, unknown fields too."""
    found = []
    for item in manifests.objects:
        if not structure.knows(item):
            found += _against(item, name_of(item), module, versions)
    for pods in manifests.pods():
        if structure.knows(pods.owner):
            metadata = {**(pods.template.get("metadata") or {}), "name": "template"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pods.spec}
            found += _against(pod, pods.name, module, versions)
    return found


def structure_findings(manifests: Manifests) -> list[Finding]:
    """Custom resources against our list of their fields."""
    return [
        Finding(STRUCTURE, name_of(item), problem)
        for item in manifests.objects
        if structure.knows(item)
        for problem in structure.problems(item)
    ]


def _against(item: Document, name: str, module: Any, versions: list[str]) -> list[Finding]:
    problems: dict[tuple[str, str], list[str]] = {}
    for version in versions:
        try:
            module.validate(item, version, strict=True)
        except module.ValidationError as error:
            path = ".".join(str(part) for part in error.path) or "the object"
            problems.setdefault((SCHEMA, f"{path}: {error.message}"), []).append(version)
        except module.SchemaNotFoundError:
            text = f"{item['apiVersion']} {item['kind']} is no kind of Kubernetes, nor one that ew knows"
            problems.setdefault((UNKNOWN, text), []).append(version)
    return [
        Finding(rule, name, f"{text} (Kubernetes {', '.join(where)}).")
        for (rule, text), where in problems.items()
    ]
