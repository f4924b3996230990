"""How copies come and go: autoscalers and disruption budgets."""

from __future__ import annotations

from runtime.k8s.manifests import Manifests, at, name_of, selects
from runtime.k8s.pods import Document
from runtime.k8s.policy.rules import Complaints, rule
from runtime.k8s.scaling import KV_CACHE_METRIC, WAITING_METRIC

WAITING_SERIES = "nv_trt_llm_request_metrics"
KV_CACHE_SERIES = "nv_trt_llm_kv_cache_block_metrics"
LEAST_SCALE_DOWN_SECONDS = 300


@rule("scaling-metrics", "Scaling follows waiting requests and the use of the KV cache.")
def scaling_metrics(manifests: Manifests) -> Complaints:
    for item in manifests.of_kind("HorizontalPodAutoscaler"):
        names = {at(metric, "pods", "metric", "name") for metric in at(item, "spec", "metrics") or []}
        for name in (WAITING_METRIC, KV_CACHE_METRIC):
            if name not in names:
                yield name_of(item), f"It does not look at {name}; CPU and queue time say little of an LLM."
    for item in manifests.of_kind("ScaledObject"):
        queries = [at(trigger, "metadata", "query") or "" for trigger in at(item, "spec", "triggers") or []]
        for series in (WAITING_SERIES, KV_CACHE_SERIES):
            if not any(series in query for query in queries):
                yield name_of(item), f"No trigger looks at {series}."


@rule("scaling-target", "An autoscaler has a target that exists, alone, and a range.")
def scaling_target(manifests: Manifests) -> Complaints:
    seen: set[str] = set()
    for item in _autoscalers(manifests):
        target = at(item, "spec", "scaleTargetRef") or {}
        goal = manifests.named(target.get("kind", "Deployment"), target.get("name", ""))
        name = f"{target.get('kind')}/{target.get('name')}"
        if goal is None or target.get("apiVersion", goal["apiVersion"]) != goal["apiVersion"]:
            yield name_of(item), f"Its target {name} is not here."
        elif "replicas" in (goal.get("spec") or {}):
            yield name, f"It sets replicas, which {name_of(item)} decides: every apply would reset them."
        if name in seen:
            yield name_of(item), f"{name} has another autoscaler already."
        seen.add(name)
        fewest, most = replica_limits(item)
        if not 1 <= fewest <= most:
            yield name_of(item), f"Its range {fewest} to {most} is none."


@rule("scale-down", "Copies go slowly, because a new one has to load the model again.")
def scale_down(manifests: Manifests) -> Complaints:
    for item in _autoscalers(manifests):
        is_keda = item["kind"] == "ScaledObject"
        path = ("advanced", "horizontalPodAutoscalerConfig", "behavior") if is_keda else ("behavior",)
        window = at(item, "spec", *path, "scaleDown", "stabilizationWindowSeconds")
        if window is None or window < LEAST_SCALE_DOWN_SECONDS:
            yield name_of(item), f"scaleDown waits {window} s; give it {LEAST_SCALE_DOWN_SECONDS} s or more."


@rule("disruption-budget", "A disruption budget keeps copies, and lets a node be drained.")
def disruption_budget(manifests: Manifests) -> Complaints:
    budgets = manifests.of_kind("PodDisruptionBudget")
    for pods in manifests.servers():
        mine = [item for item in budgets if selects(at(item, "spec", "selector"), pods.labels)]
        if not mine:
            yield pods.name, "No PodDisruptionBudget selects its pods."
        for item in mine:
            if _blocks(item, manifests):
                yield name_of(item), "It never lets a pod go: draining a node would hang."


@rule("rollout", "A rollout starts a new copy before it ends an old one.")
def rollout(manifests: Manifests) -> Complaints:
    for item in manifests.of_kind("Deployment"):
        strategy = at(item, "spec", "strategy") or {}
        rolling = strategy.get("rollingUpdate") or {}
        if strategy.get("type") == "Recreate" or rolling.get("maxUnavailable") not in (0, "0%"):
            yield name_of(item), "Its strategy takes copies away first; set maxUnavailable to 0."
    for item in manifests.of_kind("LeaderWorkerSet"):
        path = ("spec", "rolloutStrategy", "rollingUpdateConfiguration", "maxUnavailable")
        if at(item, *path) not in (0, "0%"):
            yield name_of(item), f"{'.'.join(path[1:])} is not 0: it takes a group away first."


def replica_limits(autoscaler: Document) -> tuple[int, int]:
    spec = autoscaler.get("spec") or {}
    if autoscaler["kind"] == "ScaledObject":
        return spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    return spec.get("minReplicas", 1), spec.get("maxReplicas", 0)


def _autoscalers(manifests: Manifests) -> list[Document]:
    return manifests.of_kind("HorizontalPodAutoscaler", "ScaledObject")


def _blocks(budget: Document, manifests: Manifests) -> bool:
    spec = budget.get("spec") or {}
    if "maxUnavailable" in spec:
        return spec["maxUnavailable"] in (0, "0", "0%")
    least = spec.get("minAvailable", 0)
    fewest = min((replica_limits(item)[0] for item in _autoscalers(manifests)), default=1)
    return least == "100%" or (isinstance(least, int) and least >= fewest)
