"""Parts of pods as plain documents: the values that a base or another template is patched with."""

from __future__ import annotations

import copy
import math
from typing import Any

from runtime.k8s import commands
from runtime.k8s.decisions import Decisions
from runtime.k8s.pool import Pool
from runtime.k8s.sizing import Resources, quantity
from runtime.k8s.values import Values

Document = dict[str, Any]

NAME = "ew"
LABELS = {"app.kubernetes.io/name": NAME}
SERVER = {**LABELS, "app.kubernetes.io/component": "server"}
BUILD = {**LABELS, "app.kubernetes.io/component": "build"}
USER = 10001
HOME = "/var/lib/ew"
MODELS = f"{HOME}/models"
PRODUCT_LABEL = "nvidia.com/gpu.product"
GPU = "nvidia.com/gpu"
LOAD_NOTE = "ew/load-seconds"
STARTUP_PERIOD = 5
CONFINED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_CONFINED = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
TOLERATIONS = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
SMALL = {
    "requests": {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"},
}


def requirements(resources: Resources, *, disk: str = "8Gi") -> Document:
    """Requests equal limits for memory and GPUs: neither can be given back; CPU may burst to twice."""
    fixed: Document = {"memory": quantity(resources.memory)}
    if resources.gpus:
        fixed[GPU] = str(resources.gpus)
    return {
        "requests": {"cpu": str(resources.cpus), **fixed, "ephemeral-storage": "1Gi"},
        "limits": {"cpu": str(2 * resources.cpus), **fixed, "ephemeral-storage": disk},
    }


def server_patch(decided: Decisions) -> Document:
    """What a served pod's template gets from config and plan; merges by container and volume name."""
    life, size, values = decided.life, decided.size, decided.values
    spec: Document = {
        "terminationGracePeriodSeconds": life.grace,
        "initContainers": [package_waiter(commands.wait_script(decided.paths, decided.pool))],
        "containers": [
            {
                "name": "server",
                "args": commands.start_arguments(decided.config, values, life),
                "resources": requirements(size),
                "startupProbe": {"failureThreshold": math.ceil(life.startup / STARTUP_PERIOD)},
                "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(life.pre_stop)]}}},
            }
        ],
        "volumes": [
            {"name": "shm", "emptyDir": {"sizeLimit": quantity(size.shm)}},
            {"name": "keys", "secret": {"secretName": values.keys_secret}},
        ],
    }
    spec.update(placement(decided.pool, values))
    return {"metadata": {"annotations": {LOAD_NOTE: str(life.load)}}, "spec": spec}


def package_waiter(script: str) -> Document:
    return {
        "name": "packages",
        "image": NAME,
        "command": ["/bin/sh", "-ec", script],
        "resources": copy.deepcopy(SMALL),
        "securityContext": copy.deepcopy(CONFINED),
        "volumeMounts": [
            {"name": "home", "mountPath": HOME},
            {"name": "models", "mountPath": MODELS, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def placement(pool: Pool, values: Values) -> Document:
    """Node selector of the pool, and the registry's secret."""
    document: Document = {}
    if pool.gpu_product:
        document["nodeSelector"] = {PRODUCT_LABEL: pool.gpu_product}
    if values.pull_secret:
        document["imagePullSecrets"] = [{"name": values.pull_secret}]
    return document


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge as far as templates need it: maps by key, lists of named things by name or path."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in patch.items()}}
    if isinstance(base, list) and isinstance(patch, list) and (key := _merge_key(patch)):
        known = {item[key]: item for item in base}
        return [
            *(merged(item, next((p for p in patch if p[key] == name), {})) for name, item in known.items()),
            *(item for item in patch if item[key] not in known),
        ]
    return copy.deepcopy(patch)


def _merge_key(items: list[Any]) -> str:
    for key in ("mountPath", "name"):
        if items and all(isinstance(item, dict) and key in item for item in items):
            return key
    return ""
