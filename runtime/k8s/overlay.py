"""An overlay's generated files, from config, plan and values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml

from builder.compat import Container
from common.config import DeployConfig
from common.errors import UsageError
from common.paths import SOURCE_ROOT
from runtime.k8s import commands, multinode, pods, sizing
from runtime.k8s.jobs import build_job
from runtime.k8s.pods import Document
from runtime.k8s.pool import Pool, pool_of
from runtime.k8s.scaling import replica_range, scaling_patch
from runtime.k8s.sizing import ModelNeeds
from runtime.k8s.values import Values, split_image

TREE = SOURCE_ROOT / "deploy" / "k8s"
HEAD = "# Written by `./ew k8s render`; change the config or its --set values and render again.\n"
MONITORS = {"pod": "monitoring", "service": "service-monitor"}
BUILD_PATIENCE = 3600  # a first rollout waits for the build job
HPA_API = ("autoscaling/v2", "HorizontalPodAutoscaler")


@dataclass(frozen=True)
class Rendered:
    """One overlay: file name -> text, and the decisions behind it."""

    pool: Pool
    files: dict[str, str]
    facts: dict[str, Any]


def render_overlay(config: DeployConfig, values: Values, overlay: str | None = None) -> Rendered:
    """Raises:
    UsageError: values, overlay and config contradict each other, or a source is missing.
    ResourceError: a model does not fit the pool.
    EwError: of other kinds, where a plan needs a model's config from the hub.
    """
    pool = pool_of(config, values, overlay)
    needs = _needs(config, values, pool.container, pool.era)
    life = commands.lifetime(needs, values, pool)
    size = sizing.server_resources(needs, config.models, values, pool.gpus)
    convert = {
        model_id: commands.convert_arguments(model, needs[model_id], pool, values, "")
        for model_id, model in config.models.items()
    }
    paths = {model_id: commands.package_path(model_id, convert[model_id], pool) for model_id in config.models}
    patch = pods.server_patch(
        commands.start_arguments(config, values, life),
        commands.wait_script(paths, pool),
        size, life, values, pool,
    )  # fmt: skip
    builds = [_build(model_id, config, needs[model_id], pool, values, paths[model_id]) for model_id in paths]
    workload = (
        multinode.resources(_base_deployment(), patch, list(paths), size, life, values, pool)
        if pool.nodes > 1
        else [_deployment_patch(patch, life, values, pool)]
    )
    files = {
        "config.json": _config_text(config, paths, pool),
        "workload.yaml": as_yaml(*workload),
        "build.yaml": as_yaml(*builds),
        "scaling.yaml": as_yaml(*_sizes(needs, values, pool)),
        "kustomization.yaml": as_yaml(_kustomization(values, pool)),
    }
    if pool.nodes > 1:
        files["references.yaml"] = as_yaml(_references())
    return Rendered(pool, files, _facts(pool, needs, life, size, values, paths))


def _needs(config: DeployConfig, values: Values, container: Container, era: str) -> dict[str, ModelNeeds]:
    unknown = set(values.sources) - set(config.models) - {""}
    if unknown:
        raise UsageError(
            f"--set source.{min(unknown)} names no model of the config.",
            hint=f"Models are {', '.join(config.models)}.",
            code="bad_set",
        )
    if "" in values.sources and len(config.models) > 1:
        raise UsageError(
            "--set source is for a config with one model.",
            hint=f"Say which: --set source.{next(iter(config.models))}=ORGANISATION/NAME",
            code="bad_set",
        )
    return {
        model_id: sizing.needs_of(model_id, model, values, container, era)
        for model_id, model in config.models.items()
    }


def _build(
    model_id: str, config: DeployConfig, need: ModelNeeds, pool: Pool, values: Values, path: str
) -> Document:
    arguments = commands.convert_arguments(config.models[model_id], need, pool, values, path)
    return build_job(model_id, arguments, path, pool, values, sizing.build_resources(need, pool.era))


def _base_deployment() -> Document:
    document: Document = yaml.safe_load((TREE / "base" / "deployment.yaml").read_text(encoding="utf-8"))
    return document


def _deployment_patch(template: Document, life: commands.Lifetime, values: Values, pool: Pool) -> Document:
    spec: Document = {"progressDeadlineSeconds": life.startup + BUILD_PATIENCE, "template": template}
    if values.autoscaler == "none":
        spec["replicas"] = replica_range(values, pool)[0]
    metadata = {"name": pods.NAME}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def _sizes(needs: dict[str, ModelNeeds], values: Values, pool: Pool) -> list[Document]:
    storage = values.storage or sizing.quantity(sizing.storage_bytes(needs, pool.era))
    claim: Document = {
        "accessModes": [values.storage_access],
        "resources": {"requests": {"storage": storage}},
    }
    if values.storage_class:
        claim["storageClassName"] = values.storage_class
    metadata = {"name": "ew-models"}
    volume = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
    return [volume, *([] if values.autoscaler == "none" else [scaling_patch(values, pool)])]


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


def _config_text(config: DeployConfig, paths: dict[str, str], pool: Pool) -> str:
    """The config as the cluster mounts it: the same models, at their places on the volume."""
    document = config.model_dump(mode="json", exclude_unset=True)
    for model_id, path in paths.items():
        document["models"][model_id]["model_path"] = path
        if pool.nodes > 1:
            document["models"][model_id].setdefault("triton", {})["num_nodes"] = pool.nodes
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _facts(
    pool: Pool,
    needs: dict[str, ModelNeeds],
    life: commands.Lifetime,
    size: sizing.Resources,
    values: Values,
    paths: dict[str, str],
) -> dict[str, Any]:
    """What was decided, for the report of `render`."""
    fewest, most = replica_range(values, pool)
    return {
        "overlay": pool.overlay,
        "image": pool.image,
        "gpu": pool.gpu_product,
        "gpus_per_pod": pool.gpus,
        "nodes_per_copy": pool.nodes,
        "replicas": [fewest, most],
        "memory": sizing.quantity(size.memory),
        "shm": sizing.quantity(size.shm),
        "load_seconds": life.load,
        "startup_seconds": life.startup,
        "grace_seconds": life.grace,
        "packages": paths,
        "sources": {model_id: need.source for model_id, need in needs.items()},
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
