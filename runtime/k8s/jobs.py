"""The job that converts a model and builds its engine on the GPU type that will serve it."""

from __future__ import annotations

import copy
import re
from typing import Any

from runtime.k8s import pods
from runtime.k8s.decisions import Decisions
from runtime.k8s.pods import Document
from runtime.k8s.sizing import Resources, build_resources, quantity
from runtime.k8s.values import Values

HUB_CACHE = f"{pods.MODELS}/.hub"
DEADLINE_SECONDS = 12 * 3600
KEEP_SECONDS = 7 * 24 * 3600
# Exit codes of ew that the same command meets again: usage, config, checkpoint or package, does not fit.
FINAL_CODES = [2, 3, 4, 8]


def build_job(model_id: str, decided: Decisions) -> Document:
    """One job for each package; its name carries the package's key: a job's template never changes."""
    path = decided.paths[model_id]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(model_id, path), "labels": dict(pods.BUILD)},
        "spec": {
            "backoffLimit": 4,
            "activeDeadlineSeconds": DEADLINE_SECONDS,
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "build", "operator": "In", "values": FINAL_CODES},
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {
                "metadata": {"labels": dict(pods.BUILD), "annotations": {"ew/package": path}},
                "spec": _pod(model_id, decided),
            },
        },
    }


def job_name(model_id: str, path: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-")
    return f"ew-build-{plain[:40].rstrip('-')}-{path[-8:]}"


def _pod(model_id: str, decided: Decisions) -> Document:
    arguments = decided.convert_arguments(model_id, decided.paths[model_id])
    size = build_resources(decided.needs[model_id], decided.pool.era)
    spec: Document = {
        "restartPolicy": "Never",
        "serviceAccountName": pods.NAME,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": copy.deepcopy(pods.POD_CONFINED),
        "terminationGracePeriodSeconds": 60,
        "containers": [_container(arguments, decided.values, size)],
        "volumes": _volumes(size),
    }
    if size.gpus:
        spec["tolerations"] = copy.deepcopy(pods.TOLERATIONS)
    return {**spec, **pods.placement(decided.pool, decided.values)}


def _container(arguments: list[str], values: Values, size: Resources) -> Document:
    token = {"name": values.hub_secret, "key": "HF_TOKEN", "optional": True}
    return {
        "name": "build",
        "image": pods.NAME,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "env": [
            {"name": "HF_HOME", "value": HUB_CACHE},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}},
        ],
        "resources": pods.requirements(size, disk="16Gi"),
        "securityContext": copy.deepcopy(pods.CONFINED),
        "volumeMounts": [
            {"name": "home", "mountPath": pods.HOME},
            {"name": "models", "mountPath": pods.MODELS},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }


def _volumes(size: Resources) -> list[dict[str, Any]]:
    return [
        {"name": "home", "emptyDir": {"sizeLimit": "4Gi"}},
        {"name": "models", "persistentVolumeClaim": {"claimName": "ew-models"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "8Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": quantity(size.shm)}},
    ]
