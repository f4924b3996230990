"""Structural checks of custom resources, whose schemas no package carries: known and needed fields, types.

Only the fields that a deployment of ew uses are listed; the pod templates inside are checked by Kubernetes'
own schema (`schemas`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from runtime.k8s.pods import Document

# A type, a nested shape, or a list of one. A name that ends in ! must be there.
Shape = Any
ANY = object
SELECTOR = {"matchLabels": dict, "matchExpressions": list}
ENDPOINT = {
    "port!": str,
    "path": str,
    "interval": str,
    "scrapeTimeout": str,
    "scheme": str,
    "honorLabels": bool,
}
TEMPLATE = {"metadata": dict, "spec!": dict}
SHAPES: dict[tuple[str, str], Shape] = {
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): {
        "replicas": int,
        "startupPolicy": ("LeaderCreated", "LeaderReady"),
        "networkConfig": {"subdomainPolicy!": ("Shared", "UniquePerReplica")},
        "rolloutStrategy": {
            "type!": ("RollingUpdate",),
            "rollingUpdateConfiguration": {"partition": int, "maxUnavailable": ANY, "maxSurge": ANY},
        },
        "leaderWorkerTemplate!": {
            "leaderTemplate": TEMPLATE,
            "workerTemplate!": TEMPLATE,
            "size": int,
            "restartPolicy": ("RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None", "Default"),
            "subGroupPolicy": dict,
        },
    },
    ("keda.sh/v1alpha1", "ScaledObject"): {
        "scaleTargetRef!": {"apiVersion": str, "kind": str, "name!": str, "envSourceContainerName": str},
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "idleReplicaCount": int,
        "pollingInterval": int,
        "cooldownPeriod": int,
        "initialCooldownPeriod": int,
        "fallback": dict,
        "advanced": dict,
        "triggers!": [
            {
                "type!": str,
                "metadata!": dict,
                "metricType": ("AverageValue", "Value", "Utilization"),
                "name": str,
                "authenticationRef": dict,
                "useCachedMetrics": bool,
            }
        ],
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "selector!": SELECTOR,
        "namespaceSelector": dict,
        "podMetricsEndpoints!": [ENDPOINT],
        "podTargetLabels": list,
        "jobLabel": str,
    },
    ("monitoring.coreos.com/v1", "PrometheusRule"): {
        "groups!": [
            {
                "name!": str,
                "interval": str,
                "rules!": [
                    {
                        "expr!": str,
                        "record": str,
                        "alert": str,
                        "for": str,
                        "keep_firing_for": str,
                        "labels": dict,
                        "annotations": dict,
                    }
                ],
            }
        ],
    },
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {
        "selector!": SELECTOR,
        "namespaceSelector": dict,
        "endpoints!": [ENDPOINT],
        "targetLabels": list,
        "jobLabel": str,
    },
}


def knows(item: Document) -> bool:
    return (item["apiVersion"], item["kind"]) in SHAPES


def problems(item: Document) -> Iterator[str]:
    """What is wrong with the spec of a custom resource."""
    yield from _differences(item.get("spec"), SHAPES[item["apiVersion"], item["kind"]], "spec")


def _differences(value: Any, shape: Shape, path: str) -> Iterator[str]:
    if isinstance(shape, dict):
        yield from _map_differences(value, shape, path)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{path} must be a list."
        else:
            for index, entry in enumerate(value):
                yield from _differences(entry, shape[0], f"{path}[{index}]")
    elif isinstance(shape, tuple):
        if value not in shape:
            yield f"{path} is {value!r}; it can be {', '.join(shape)}."
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        yield f"{path} is {value!r}, which is no {shape.__name__}."


def _map_differences(value: Any, shape: dict[str, Shape], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path} must be a map."
        return
    known = {name.removesuffix("!"): inner for name, inner in shape.items()}
    for name in shape:
        if name.endswith("!") and name[:-1] not in value:
            yield f"{path}.{name[:-1]} is missing."
    for name, entry in value.items():
        if name not in known:
            yield f"{path}.{name} is not a field of it, or none that ew uses."
        else:
            yield from _differences(entry, known[name], f"{path}.{name}")
