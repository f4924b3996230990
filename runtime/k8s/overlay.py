"""An overlay's generated files, from config, plan and values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml

from common.config import DeployConfig
from common.paths import SOURCE_ROOT
from runtime.k8s import multinode, pods, sizing
from runtime.k8s.decisions import Decisions, decide
from runtime.k8s.jobs import build_job
from runtime.k8s.pods import Document
from runtime.k8s.pool import Pool
from runtime.k8s.scaling import HPA_API, scaling_patch
from runtime.k8s.values import Values, split_image

TREE = SOURCE_ROOT / "deploy" / "k8s"
HEAD = "# Written by `./ew k8s render`; change the config or its --set values and render again.\n"
MONITORS = {"pod": "monitoring", "service": "service-monitor"}
BUILD_PATIENCE = 3600  # a first rollout waits for the build job


@dataclass(frozen=True)
class Rendered:
    """One overlay: file name -> text, and the decisions behind it."""

    pool: Pool
    files: dict[str, str]
    facts: dict[str, Any]


def render_overlay(config: DeployConfig, values: Values, overlay: str | None = None) -> Rendered:
    """The files of the overlay that the config calls for, or of the one named. Errors as in `decide`."""
    decided = decide(config, values, overlay)
    builds = [build_job(model_id, decided) for model_id in config.models]
    files = {
        "config.json": _config_text(decided),
        "workload.yaml": as_yaml(*_workload(decided)),
        "build.yaml": as_yaml(*builds),
        "scaling.yaml": as_yaml(*_sizes(decided)),
        "kustomization.yaml": as_yaml(_kustomization(values, decided.pool)),
    }
    if decided.pool.nodes > 1:
        files["references.yaml"] = as_yaml(_references())
    return Rendered(decided.pool, files, _facts(decided))


def _workload(decided: Decisions) -> list[Document]:
    patch = pods.server_patch(decided)
    if decided.pool.nodes > 1:
        return multinode.resources(_base_deployment(), patch, decided)
    return [_deployment_patch(patch, decided)]


def _base_deployment() -> Document:
    document: Document = yaml.safe_load((TREE / "base" / "deployment.yaml").read_text(encoding="utf-8"))
    return document


def _deployment_patch(template: Document, decided: Decisions) -> Document:
    patience = decided.life.startup + BUILD_PATIENCE
    spec: Document = {"progressDeadlineSeconds": patience, "template": template}
    if not decided.is_autoscaled:
        spec["replicas"] = decided.replicas[0]
    metadata = {"name": pods.NAME}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def _sizes(decided: Decisions) -> list[Document]:
    values = decided.values
    storage = values.storage or sizing.quantity(sizing.storage_bytes(decided.needs, decided.pool.era))
    claim: Document = {
        "accessModes": [values.storage_access],
        "resources": {"requests": {"storage": storage}},
    }
    if values.storage_class:
        claim["storageClassName"] = values.storage_class
    metadata = {"name": "ew-models"}
    volume = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
    return [volume, *([scaling_patch(decided)] if decided.is_autoscaled else [])]


def _kustomization(values: Values, pool: Pool) -> Document:
    components = [MONITORS[values.monitor]] if values.monitor in MONITORS else []
    components += ["keda"] if values.autoscaler == "keda" else []
    components += ["gpu"] if pool.gpus and pool.nodes == 1 else []
    patches: list[Document] = [{"path": "scaling.yaml"}]
    resources = ["../../base", "build.yaml"]
    if pool.nodes > 1:
        resources.append("workload.yaml")
        patches.append(_deletion("apps/v1", "Deployment"))
    else:
        patches.append({"path": "workload.yaml"})
    if values.autoscaler == "none":
        patches.append(_deletion(*HPA_API))
    document: Document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": values.namespace,
        "resources": resources,
        "components": [f"../../components/{name}" for name in components],
        "configMapGenerator": [{"name": "ew-config", "files": ["config.json"]}],
        "patches": patches,
        "images": [{"name": pods.NAME, **split_image(pool.image)}],
    }
    if pool.nodes > 1:
        document["configurations"] = ["references.yaml"]
    return {key: value for key, value in document.items() if value}


def _deletion(api: str, kind: str) -> Document:
    gone = {"$patch": "delete", "apiVersion": api, "kind": kind, "metadata": {"name": pods.NAME}}
    return {"patch": yaml.safe_dump(gone, sort_keys=False)}


def _references() -> Document:
    """kustomize knows the fields of Kubernetes' own kinds; these are a LeaderWorkerSet's."""
    templates = [f"spec/leaderWorkerTemplate/{role}Template" for role in ("leader", "worker")]
    fields = [
        {"kind": "LeaderWorkerSet", "path": f"{template}/spec/volumes/configMap/name"}
        for template in templates
    ]
    return {"nameReference": [{"kind": "ConfigMap", "version": "v1", "fieldSpecs": fields}]}


def _config_text(decided: Decisions) -> str:
    """The config as the cluster mounts it: the same models, at their places on the volume."""
    document = decided.config.model_dump(mode="json", exclude_unset=True)
    for model_id, path in decided.paths.items():
        document["models"][model_id]["model_path"] = path
        if decided.pool.nodes > 1:
            document["models"][model_id].setdefault("triton", {})["num_nodes"] = decided.pool.nodes
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _facts(decided: Decisions) -> dict[str, Any]:
    """What was decided, for the report of `render`."""
    pool, life, size = decided.pool, decided.life, decided.size
    return {
        "overlay": pool.overlay,
        "image": pool.image,
        "gpu": pool.gpu_product,
        "gpus_per_pod": pool.gpus,
        "nodes_per_copy": pool.nodes,
        "replicas": list(decided.replicas),
        "memory": sizing.quantity(size.memory),
        "shm": sizing.quantity(size.shm),
        "load_seconds": life.load,
        "startup_seconds": life.startup,
        "grace_seconds": life.grace,
        "packages": decided.paths,
        "sources": {model_id: need.source for model_id, need in decided.needs.items()},
    }


def as_yaml(*documents: Document, head: str = HEAD) -> str:
    """Documents as people write them."""
    texts = (yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=110) for item in documents)
    return head + "---\n".join(texts)


class _Dumper(yaml.SafeDumper):
    """Block lists indented under their key, texts of several lines as blocks, no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
