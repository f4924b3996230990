"""Who reaches what: services, network policies, monitors."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.k8s.manifests import Manifests, Pods, arguments_of, at, name_of, option, selects
from runtime.k8s.pods import Document
from runtime.k8s.policy.rules import Complaints, rule


@rule("service", "Services lead to the proxy's port of the served pods, and to no other.")
def service(manifests: Manifests) -> Complaints:
    for item in manifests.of_kind("Service"):
        selector = {"matchLabels": at(item, "spec", "selector") or {}}
        chosen = [
            pods for pods in manifests.pods() if selector["matchLabels"] and selects(selector, pods.labels)
        ]
        if not chosen:
            yield name_of(item), "It selects no pods."
        for pods in chosen:
            for port in at(item, "spec", "ports") or []:
                if not _is_proxy_port(pods, port.get("targetPort", port.get("port"))):
                    yield (
                        name_of(item),
                        f"It opens {port.get('targetPort')} of {pods.name}, not the proxy's port.",
                    )
    if manifests.servers() and not manifests.of_kind("Service"):
        yield "Service", "There is none."


@rule("network-policy", "Every pod is under a NetworkPolicy that opens the proxy's port and nothing else.")
def network_policy(manifests: Manifests) -> Complaints:
    policies = manifests.of_kind("NetworkPolicy")
    for pods in manifests.pods():
        mine = [item for item in policies if selects(at(item, "spec", "podSelector"), pods.labels)]
        kinds = {kind for item in mine for kind in at(item, "spec", "policyTypes") or ["Ingress"]}
        for kind in ("Ingress", "Egress"):
            if kind not in kinds:
                yield pods.name, f"No NetworkPolicy limits its {kind.lower()}."
        for item in mine:
            for ingress in at(item, "spec", "ingress") or []:
                for problem in _open_ports(pods, ingress, manifests):
                    yield name_of(item), problem


def _open_ports(pods: Pods, ingress: Document, manifests: Manifests) -> Iterator[str]:
    """A rule for everybody may open the proxy only; what lets in our own pods may open more."""
    if _is_among_ourselves(ingress, manifests):
        return
    if not ingress.get("ports"):
        yield f"It opens every port of {pods.name}."
    for port in ingress.get("ports") or []:
        if not _is_proxy_port(pods, port.get("port")):
            yield f"It opens port {port.get('port')} of {pods.name} to others than its own pods."


def _is_among_ourselves(ingress: Document, manifests: Manifests) -> bool:
    """Whether only pods of these manifests are let in: selected by labels, in this namespace."""
    peers = ingress.get("from") or []
    selectors = [peer.get("podSelector") for peer in peers]
    own = [pods.labels for pods in manifests.pods()]
    return bool(peers) and all(
        selector
        and not {"namespaceSelector", "ipBlock"} & set(peer)
        and any(selects(selector, labels) for labels in own)
        for peer, selector in zip(peers, selectors, strict=True)
    )


def _is_proxy_port(pods: Pods, port: object) -> bool:
    if pods.server is None:
        return False
    listens = int(option(arguments_of(pods.server), "--port") or 8080)
    names = {item.get("name"): item.get("containerPort") for item in pods.server.get("ports") or []}
    return bool(names.get(port, port) == listens)


@rule("container-ports", "Serving containers declare the proxy's port only.")
def container_ports(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        for port in at(pods.server, "ports") or []:
            if not _is_proxy_port(pods, port.get("containerPort")):
                yield pods.name, f"Port {port.get('containerPort')} is not the proxy's."
            if port.get("hostPort"):
                yield pods.name, f"Port {port.get('containerPort')} is opened on the node (hostPort)."


@rule("triton-private", "tritonserver keeps to loopback: keys and limits are the proxy's.")
def triton_private(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        for argument in arguments_of(pods.server or {}):
            name, _, value = argument.partition("=")
            if name in ("--http-address", "--grpc-address", "--metrics-address") and value != "127.0.0.1":
                yield pods.name, f"{argument} opens tritonserver beside the proxy."


@rule("monitors", "Monitors select the served pods and scrape a port that they have.")
def monitors(manifests: Manifests) -> Complaints:
    ports = {port.get("name") for pods in manifests.servers() for port in at(pods.server, "ports") or []}
    for item in manifests.of_kind("PodMonitor", "ServiceMonitor"):
        is_pod = item["kind"] == "PodMonitor"
        endpoints = at(item, "spec", "podMetricsEndpoints" if is_pod else "endpoints") or []
        services = [at(service, "metadata", "labels") or {} for service in manifests.of_kind("Service")]
        targets = [pods.labels for pods in manifests.servers()] if is_pod else services
        if not any(selects(at(item, "spec", "selector"), labels) for labels in targets):
            yield name_of(item), "It selects nothing that serves."
        if not endpoints or any(
            end.get("port") not in ports or end.get("path") != "/metrics" for end in endpoints
        ):
            yield name_of(item), f"It has to scrape /metrics of {', '.join(sorted(map(str, ports)))}."
