"""How many copies: patches of the autoscaler, and KEDA's triggers."""

from __future__ import annotations

from runtime.k8s import multinode
from runtime.k8s.decisions import Decisions
from runtime.k8s.pods import NAME, Document
from runtime.k8s.pool import Pool
from runtime.k8s.values import Values

HPA_API = ("autoscaling/v2", "HorizontalPodAutoscaler")
WAITING_METRIC = "ew_waiting_requests"
KV_CACHE_METRIC = "ew_kv_cache_use"
WAITING_QUERY = 'sum(nv_trt_llm_request_metrics{{namespace="{namespace}",request_type="waiting"}})'
KV_CACHE_QUERY = (
    "avg(max by (pod) (nv_trt_llm_kv_cache_block_metrics"
    '{{namespace="{namespace}",kv_cache_block_type="fraction"}}))'
)


def target(pool: Pool) -> Document:
    if pool.nodes > 1:
        return {"apiVersion": multinode.API, "kind": "LeaderWorkerSet", "name": NAME}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}


def scaling_patch(decided: Decisions) -> Document:
    """For the HorizontalPodAutoscaler or the ScaledObject of the base."""
    values, (fewest, most) = decided.values, decided.replicas
    if values.autoscaler == "keda":
        api, kind = "keda.sh/v1alpha1", "ScaledObject"
        spec = {"minReplicaCount": fewest, "maxReplicaCount": most, "triggers": _triggers(values)}
    else:
        api, kind = HPA_API
        spec = {"minReplicas": fewest, "maxReplicas": most, "metrics": _metrics(values)}
    spec = {"scaleTargetRef": target(decided.pool), **spec}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": NAME}, "spec": spec}


def _metrics(values: Values) -> list[Document]:
    return [
        _metric(WAITING_METRIC, str(values.waiting_target)),
        _metric(KV_CACHE_METRIC, f"{round(values.kv_cache_target * 1000)}m"),
    ]


def _metric(name: str, average: str) -> Document:
    wanted = {"type": "AverageValue", "averageValue": average}
    return {"type": "Pods", "pods": {"metric": {"name": name}, "target": wanted}}


def _triggers(values: Values) -> list[Document]:
    """KEDA divides the sum of waiting requests by the copies; the KV cache's use is a mean already."""
    return [
        _trigger(values, WAITING_QUERY, str(values.waiting_target), "AverageValue"),
        _trigger(values, KV_CACHE_QUERY, f"{values.kv_cache_target:g}", "Value"),
    ]


def _trigger(values: Values, query: str, threshold: str, kind: str) -> Document:
    metadata = {
        "serverAddress": values.prometheus,
        "query": query.format(namespace=values.namespace),
        "threshold": threshold,
    }
    return {"type": "prometheus", "metricType": kind, "metadata": metadata}
