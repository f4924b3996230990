"""What runs: ew's command lines agree with config, packages and jobs; API versions exist."""

from __future__ import annotations

import json

from common.config import DeployConfig, ModelConfig, parse_config
from common.errors import ConfigError
from runtime.k8s.manifests import Manifests, Pods, arguments_of, at, name_of, option, options
from runtime.k8s.policy.rules import Complaints, rule

# API versions that clusters of today serve no more, and what took their place
REMOVED = {
    "extensions/v1beta1": "apps/v1 or networking.k8s.io/v1",
    "apps/v1beta1": "apps/v1",
    "apps/v1beta2": "apps/v1",
    "autoscaling/v2beta1": "autoscaling/v2",
    "autoscaling/v2beta2": "autoscaling/v2",
    "batch/v1beta1": "batch/v1",
    "batch/v2alpha1": "batch/v1",
    "policy/v1beta1": "policy/v1",
    "networking.k8s.io/v1beta1": "networking.k8s.io/v1",
    "rbac.authorization.k8s.io/v1beta1": "rbac.authorization.k8s.io/v1",
    "apiextensions.k8s.io/v1beta1": "apiextensions.k8s.io/v1",
    "admissionregistration.k8s.io/v1beta1": "admissionregistration.k8s.io/v1",
    "storage.k8s.io/v1beta1": "storage.k8s.io/v1",
    "scheduling.k8s.io/v1beta1": "scheduling.k8s.io/v1",
    "coordination.k8s.io/v1beta1": "coordination.k8s.io/v1",
    "discovery.k8s.io/v1beta1": "discovery.k8s.io/v1",
    "flowcontrol.apiserver.k8s.io/v1beta3": "flowcontrol.apiserver.k8s.io/v1",
    "leaderworkerset.x-k8s.io/v1alpha1": "leaderworkerset.x-k8s.io/v1",
}


@rule("api-version", "API versions exist in clusters of today.")
def api_version(manifests: Manifests) -> Complaints:
    for item in manifests.objects:
        instead = REMOVED.get(item["apiVersion"])
        if instead:
            yield name_of(item), f"{item['apiVersion']} is served no more; use {instead}."


@rule("config", "The served models are those of the mounted config.")
def config(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        try:
            served = _config_of(pods, manifests)
        except (ConfigError, ValueError) as error:
            yield pods.name, f"Its config is not valid: {error}"
            continue
        if served is None:
            yield pods.name, "No mounted ConfigMap of these manifests has a config.json."
            continue
        arguments = arguments_of(pods.server or {})
        for model_id in options(arguments, "--model"):
            if model_id not in served.models:
                yield pods.name, f"It starts {model_id}, which its config does not have."
            elif served.models[model_id].engine != (option(arguments, "--engine") or "cpu"):
                yield pods.name, f"{model_id} has the engine {served.models[model_id].engine} in its config."


@rule("packages", "Pods wait for exactly the packages that their config names, and a job makes each.")
def packages(manifests: Manifests) -> Complaints:
    made = {option(arguments_of(item), "--output") for pods in manifests.pods() for item in pods.containers}
    for pods in manifests.servers():
        waits = " ".join(
            str(part) for item in pods.spec.get("initContainers") or [] for part in item.get("command") or []
        )
        for model_id, model in _models_of(pods, manifests).items():
            if model.model_path not in waits:
                yield pods.name, f"It does not wait for {model.model_path} ({model_id})."
            if model.model_path not in made:
                yield pods.name, f"No job makes {model.model_path} ({model_id})."


@rule("job-limits", "Jobs end: they have a deadline, a few retries, and are cleared away.")
def job_limits(manifests: Manifests) -> Complaints:
    for item in manifests.of_kind("Job"):
        missing = [
            field
            for field in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
            if at(item, "spec", field) is None
        ]
        if missing:
            yield name_of(item), f"It has no {', '.join(missing)}."


@rule("job-name", "A job is named by what it builds: templates of jobs never change.")
def job_name(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        output = option(arguments_of((pods.containers or [{}])[0]), "--output")
        if pods.is_job and output and not str(at(pods.owner, "metadata", "name")).endswith(output[-8:]):
            yield pods.name, f"Its name does not carry the key of {output}."


@rule("nodes", "A copy over several nodes has as many GPUs as its models need.")
def nodes(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        size = at(pods.owner, "spec", "leaderWorkerTemplate", "size") or 1
        have = int(at(pods.server, "resources", "limits", "nvidia.com/gpu") or 0) * size
        for model_id, model in _models_of(pods, manifests).items():
            need = model.tensor_parallel_size * model.pipeline_parallel_size if model.engine != "cpu" else 0
            if need > have:
                yield pods.name, f"{model_id} needs {need} GPUs; a copy has {have}."


def _models_of(pods: Pods, manifests: Manifests) -> dict[str, ModelConfig]:
    """The models of its config; none where that is not valid, which is for the rule `config` to say."""
    try:
        served = _config_of(pods, manifests)
    except (ConfigError, ValueError):
        return {}
    return served.models if served else {}


def _config_of(pods: Pods, manifests: Manifests) -> DeployConfig | None:
    for volume in pods.spec.get("volumes") or []:
        text = at(manifests.named("ConfigMap", at(volume, "configMap", "name") or ""), "data", "config.json")
        if text is not None:
            return parse_config(json.loads(text), source="config.json")
    return None
