"""Every policy rule: the overlays pass all of them, and each catches the mistake it is there for."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.k8s.manifests import Manifests
from runtime.k8s.policy import RULES, apply
from runtime.k8s.pool import OVERLAYS
from tests.deploy.k8s import REMOVED, added, changed, overlay

POD = "spec/template/spec"
SERVER = f"{POD}/containers/server"
WAITER = f"{POD}/initContainers/packages"
LEADER = "spec/leaderWorkerTemplate/leaderTemplate/spec"
WORKER = "spec/leaderWorkerTemplate/workerTemplate/spec"
JOB = "Job/ew-build"
DEPLOYMENT = "Deployment/ew"
LWS = "LeaderWorkerSet/ew"
HPA = "HorizontalPodAutoscaler/ew"
GPU = "nvidia.com~gpu"
RANKS = "NetworkPolicy/ew-ranks"
EMPTY_KEYS = {"name": "keys", "emptyDir": {"sizeLimit": "1Mi"}}

# rule, overlay, object, path, value
MUTATIONS: list[tuple[str, str, str, str, Any]] = [
    ("grace", "cpu", DEPLOYMENT, f"{POD}/terminationGracePeriodSeconds", 30),
    ("grace", "cpu", DEPLOYMENT, f"{POD}/terminationGracePeriodSeconds", REMOVED),
    ("grace", "cpu", DEPLOYMENT, f"{SERVER}/lifecycle/preStop/exec/command/1", "60"),
    ("grace", "single-gpu", DEPLOYMENT, f"{SERVER}/args/+", "--drain=600"),
    ("grace", "multi-node", LWS, f"{LEADER}/terminationGracePeriodSeconds", 60),
    ("pre-stop", "cpu", DEPLOYMENT, f"{SERVER}/lifecycle", REMOVED),
    ("pre-stop", "cpu", DEPLOYMENT, f"{SERVER}/lifecycle/preStop/exec/command/1", "1"),
    ("lame-duck", "cpu", DEPLOYMENT, f"{SERVER}/args/+", "--lame-duck=0"),
    ("startup-budget", "single-gpu", DEPLOYMENT, f"{SERVER}/startupProbe/failureThreshold", 3),
    ("startup-budget", "multi-node", LWS, f"{LEADER}/containers/server/startupProbe/failureThreshold", 60),
    ("startup-budget", "cpu", DEPLOYMENT, f"{SERVER}/args/+", "--timeout=3600"),
    ("startup-budget", "cpu", DEPLOYMENT, f"{SERVER}/args/+", "--timeout=30"),
    ("startup-budget", "cpu", DEPLOYMENT, "spec/template/metadata/annotations/ew~load-seconds", "5000"),
    ("probes", "cpu", DEPLOYMENT, f"{SERVER}/startupProbe", REMOVED),
    ("probes", "cpu", DEPLOYMENT, f"{SERVER}/readinessProbe", REMOVED),
    ("probes", "cpu", DEPLOYMENT, f"{SERVER}/readinessProbe/httpGet/path", "/health/live"),
    ("probes", "cpu", DEPLOYMENT, f"{SERVER}/livenessProbe/httpGet/path", "/health/ready"),
    ("probes", "cpu", DEPLOYMENT, f"{SERVER}/livenessProbe/httpGet/path", "/v2/health/live"),
    ("probes", "cpu", DEPLOYMENT, f"{SERVER}/livenessProbe/httpGet/port", 8000),
    ("probes", "cpu", DEPLOYMENT, f"{SERVER}/args/+", "--port=9090"),
    ("liveness-patience", "cpu", DEPLOYMENT, f"{SERVER}/livenessProbe/failureThreshold", 1),
    ("listens", "cpu", DEPLOYMENT, f"{SERVER}/args/+", "--host=127.0.0.1"),
    ("foreground", "cpu", DEPLOYMENT, f"{SERVER}/args/1", "--dry-run"),
    ("resources", "cpu", DEPLOYMENT, f"{SERVER}/resources/limits/memory", REMOVED),
    ("resources", "cpu", DEPLOYMENT, f"{WAITER}/resources", REMOVED),
    ("resources", "cpu", JOB, f"{POD}/containers/build/resources/requests/cpu", REMOVED),
    ("resources", "single-gpu", DEPLOYMENT, f"{SERVER}/resources/requests/memory", "1Gi"),
    ("gpus", "multi-gpu", DEPLOYMENT, f"{SERVER}/resources/requests/{GPU}", "2"),
    ("gpus", "single-gpu", DEPLOYMENT, f"{POD}/tolerations", []),
    ("gpus", "single-gpu", JOB, f"{POD}/nodeSelector", REMOVED),
    ("one-gpu-type", "single-gpu", JOB, f"{POD}/nodeSelector/nvidia.com~gpu.product", "NVIDIA-L4"),
    ("shm", "cpu", DEPLOYMENT, f"{SERVER}/volumeMounts/~dev~shm", REMOVED),
    ("shm", "cpu", DEPLOYMENT, f"{POD}/volumes/shm/emptyDir/medium", REMOVED),
    ("shm", "single-gpu", DEPLOYMENT, f"{POD}/volumes/shm/emptyDir/sizeLimit", "64Mi"),
    ("shm", "single-gpu", DEPLOYMENT, f"{POD}/volumes/shm/emptyDir/sizeLimit", "500Gi"),
    ("shm", "multi-node", LWS, f"{WORKER}/volumes/shm/emptyDir/sizeLimit", REMOVED),
    ("volumes", "cpu", "PersistentVolumeClaim/ew-models", "spec/accessModes", ["ReadWriteOnce"]),
    ("volumes", "cpu", DEPLOYMENT, f"{SERVER}/volumeMounts/models/readOnly", False),
    ("empty-dirs", "cpu", DEPLOYMENT, f"{POD}/volumes/home/emptyDir", {}),
    ("spread", "cpu", DEPLOYMENT, f"{POD}/topologySpreadConstraints", REMOVED),
    ("spread", "cpu", DEPLOYMENT, "spec/template/metadata/labels/app.kubernetes.io~component", "other"),
    ("restricted", "cpu", DEPLOYMENT, f"{POD}/securityContext/runAsNonRoot", False),
    ("restricted", "cpu", DEPLOYMENT, f"{POD}/securityContext/runAsUser", 0),
    ("restricted", "cpu", DEPLOYMENT, f"{POD}/securityContext/seccompProfile", REMOVED),
    ("restricted", "cpu", DEPLOYMENT, f"{POD}/hostNetwork", True),
    ("restricted", "cpu", DEPLOYMENT, f"{POD}/volumes/tmp", {"name": "tmp", "hostPath": {"path": "/tmp"}}),
    ("restricted", "cpu", DEPLOYMENT, f"{SERVER}/securityContext/allowPrivilegeEscalation", True),
    ("restricted", "cpu", DEPLOYMENT, f"{SERVER}/securityContext/privileged", True),
    ("restricted", "cpu", DEPLOYMENT, f"{SERVER}/securityContext/capabilities", {"add": ["IPC_LOCK"]}),
    ("restricted", "multi-node", LWS, f"{WORKER}/containers/rank/securityContext/runAsUser", 0),
    ("read-only-root", "cpu", JOB, f"{POD}/containers/build/securityContext/readOnlyRootFilesystem", False),
    ("image", "cpu", DEPLOYMENT, f"{SERVER}/image", "ew"),
    ("image", "cpu", DEPLOYMENT, f"{SERVER}/image", "registry.example.com:5000/ew:latest"),
    ("image", "cpu", DEPLOYMENT, f"{WAITER}/image", "registry.example.com:5000/ew"),
    ("one-image", "single-gpu", JOB, f"{POD}/containers/build/image", "ew:0.1.0-triton25.10"),
    ("token", "cpu", DEPLOYMENT, f"{POD}/automountServiceAccountToken", True),
    ("token", "cpu", "ServiceAccount/ew", "automountServiceAccountToken", REMOVED),
    ("token", "cpu", JOB, f"{POD}/serviceAccountName", REMOVED),
    ("service-links", "cpu", DEPLOYMENT, f"{POD}/enableServiceLinks", REMOVED),
    ("secrets", "cpu", DEPLOYMENT, f"{SERVER}/env/+", {"name": "HF_TOKEN", "value": "hf_x"}),
    ("secrets", "cpu", JOB, f"{POD}/containers/build/args/+", "--token=hf_" + "a" * 30),
    ("api-keys", "cpu", DEPLOYMENT, f"{SERVER}/env", []),
    ("api-keys", "cpu", DEPLOYMENT, f"{POD}/volumes/keys", EMPTY_KEYS),
    ("namespace", "cpu", "Namespace/ew", "metadata/labels/pod-security.kubernetes.io~enforce", "baseline"),
    ("service", "cpu", "Service/ew", "spec/ports/http/targetPort", 8000),
    ("service", "cpu", "Service/ew", "spec/selector/app.kubernetes.io~name", "triton"),
    ("service", "cpu", "Service/ew", "", REMOVED),
    ("network-policy", "cpu", "NetworkPolicy/ew-server", "", REMOVED),
    ("network-policy", "cpu", "NetworkPolicy/ew-server", "spec/ingress", [{}]),
    ("network-policy", "cpu", "NetworkPolicy/ew-server", "spec/ingress/0/ports/+", {"port": 8001}),
    ("network-policy", "cpu", "NetworkPolicy/ew-server", "spec/policyTypes", ["Ingress"]),
    ("network-policy", "cpu", "NetworkPolicy/ew-build", "spec/ingress", [{"ports": [{"port": 80}]}]),
    ("network-policy", "multi-node", RANKS, "spec/ingress/0/from", [{"podSelector": {}}]),
    ("network-policy", "multi-node", RANKS, "spec/ingress/0/from/0/namespaceSelector", {}),
    ("container-ports", "cpu", DEPLOYMENT, f"{SERVER}/ports/+", {"name": "grpc", "containerPort": 8001}),
    ("container-ports", "cpu", DEPLOYMENT, f"{SERVER}/ports/http/hostPort", 80),
    ("triton-private", "cpu", DEPLOYMENT, f"{SERVER}/args/+", "--http-address=0.0.0.0"),
    ("monitors", "cpu", "PodMonitor/ew", "spec/podMetricsEndpoints/0/port", "metrics"),
    ("monitors", "cpu", "PodMonitor/ew", "spec/podMetricsEndpoints/0/path", "/v2/metrics"),
    ("monitors", "cpu", "PodMonitor/ew", "spec/selector/matchLabels/app.kubernetes.io~name", "triton"),
    ("scaling-metrics", "cpu", HPA, "spec/metrics/1", REMOVED),
    ("scaling-metrics", "cpu", HPA, "spec/metrics/0/pods/metric/name", "nv_inference_queue_duration_us"),
    ("scaling-metrics", "multi-node", "ScaledObject/ew", "spec/triggers/0", REMOVED),
    ("scaling-target", "cpu", HPA, "spec/scaleTargetRef/name", "triton"),
    ("scaling-target", "cpu", HPA, "spec/maxReplicas", 1),
    ("scaling-target", "cpu", DEPLOYMENT, "spec/replicas", 3),
    ("scaling-target", "multi-node", "ScaledObject/ew", "spec/scaleTargetRef/kind", "Deployment"),
    ("scale-down", "cpu", HPA, "spec/behavior/scaleDown/stabilizationWindowSeconds", 30),
    ("scale-down", "multi-node", "ScaledObject/ew", "spec/advanced", REMOVED),
    ("disruption-budget", "cpu", "PodDisruptionBudget/ew", "", REMOVED),
    ("disruption-budget", "cpu", "PodDisruptionBudget/ew", "spec/maxUnavailable", 0),
    ("disruption-budget", "cpu", "PodDisruptionBudget/ew", "spec",
     {"minAvailable": 2, "selector": {"matchLabels": {"app.kubernetes.io/name": "ew"}}}),
    ("rollout", "cpu", DEPLOYMENT, "spec/strategy/type", "Recreate"),
    ("rollout", "cpu", DEPLOYMENT, "spec/strategy/rollingUpdate/maxUnavailable", 1),
    ("rollout", "multi-node", LWS, "spec/rolloutStrategy/rollingUpdateConfiguration/maxUnavailable", 1),
    ("rollout", "multi-node", LWS, "spec/rolloutStrategy", REMOVED),
    ("api-version", "cpu", HPA, "apiVersion", "autoscaling/v2beta2"),
    ("api-version", "cpu", "PodDisruptionBudget/ew", "apiVersion", "policy/v1beta1"),
    ("config", "cpu", "ConfigMap/ew-config", "", REMOVED),
    ("config", "cpu", "ConfigMap/ew-config", "data/config.json", "{}"),
    ("config", "cpu", "ConfigMap/ew-config", "data/config.json", "{"),
    ("config", "cpu", DEPLOYMENT, f"{SERVER}/args/3", "cuda-trt"),
    ("packages", "single-gpu", DEPLOYMENT, f"{WAITER}/command/2", "until ew package show x; do :; done"),
    ("packages", "single-gpu", JOB, "", REMOVED),
    ("job-limits", "cpu", JOB, "spec/backoffLimit", REMOVED),
    ("job-limits", "cpu", JOB, "spec/activeDeadlineSeconds", REMOVED),
    ("job-name", "cpu", JOB, "metadata/name", "ew-build"),
    ("nodes", "multi-node", LWS, "spec/leaderWorkerTemplate/size", 1),
    ("nodes", "multi-gpu", DEPLOYMENT, f"{SERVER}/resources/limits/{GPU}", "2"),
]  # fmt: skip


def _rules(manifests: Manifests) -> set[str]:
    return {finding.rule for finding in apply(manifests)}


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_keep_every_rule(name: str) -> None:
    assert apply(overlay(name)) == []


@pytest.mark.parametrize(
    ("rule", "name", "target", "path", "value"),
    MUTATIONS,
    ids=[f"{index}-{mutation[0]}" for index, mutation in enumerate(MUTATIONS)],
)
def test_a_mistake_is_found_by_its_rule(rule: str, name: str, target: str, path: str, value: Any) -> None:
    assert rule in _rules(changed(name, target, path, value))


def test_every_rule_has_a_mistake_that_only_its_absence_would_let_pass() -> None:
    assert {mutation[0] for mutation in MUTATIONS} == set(RULES)


def test_a_secret_is_no_part_of_manifests() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ew-keys"}, "stringData": {"a": "b"}}
    assert _rules(added("cpu", secret)) == {"secrets"}


def test_two_autoscalers_do_not_share_a_target() -> None:
    copy_of = next(iter(overlay("cpu").of_kind("HorizontalPodAutoscaler")))
    other = {**copy_of, "metadata": {"name": "second"}}
    assert _rules(added("cpu", other)) == {"scaling-target"}


def test_a_finding_names_object_and_numbers() -> None:
    found = apply(changed("cpu", DEPLOYMENT, f"{POD}/terminationGracePeriodSeconds", 30))
    assert [finding.object for finding in found] == ["Deployment/ew"]
    assert "is 30" in found[0].message and "drain 120 s" in found[0].message


@pytest.mark.parametrize("tag", ["ew@sha256:" + "a" * 64, "registry.example.com:5000/team/ew:1.0-cpu"])
def test_pinned_images_pass(tag: str) -> None:
    assert "image" not in _rules(changed("cpu", DEPLOYMENT, f"{SERVER}/image", tag))


def test_samples_without_a_server_are_not_judged_as_one() -> None:
    plain = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {}}
    assert apply(Manifests((plain,))) == []
