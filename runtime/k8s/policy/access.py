"""What pods may do: the restricted profile, the image, tokens and secrets."""

from __future__ import annotations

import re

from runtime.k8s.manifests import Manifests, Pods, at, name_of
from runtime.k8s.pods import Document
from runtime.k8s.policy.rules import Complaints, rule
from runtime.k8s.values import IMAGE

HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
VOLUME_KINDS = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|SECRET|API_KEY|CREDENTIAL)", re.IGNORECASE)
SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|ew-[A-Za-z0-9_-]{30,}|nvapi-[A-Za-z0-9_-]{20,})")


@rule("restricted", "Pods fit the restricted profile: no root, no privileges, no host.")
def restricted(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        for problem in (*_pod_problems(pods), *_container_problems(pods)):
            yield pods.name, problem


def _pod_problems(pods: Pods) -> list[str]:
    problems = [f"{field} is on." for field in HOST_FIELDS if pods.spec.get(field)]
    for volume in pods.spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        problems += [f"A volume of kind {kind} is not allowed." for kind in kinds - VOLUME_KINDS]
    if at(pods.spec, "securityContext", "runAsUser") == 0:
        problems.append("runAsUser is 0, which is root.")
    return problems


def _container_problems(pods: Pods) -> list[str]:
    problems = []
    shared = pods.spec.get("securityContext") or {}
    for container in pods.all_containers:
        own = container.get("securityContext") or {}
        name = container.get("name")
        if not own.get("runAsNonRoot", shared.get("runAsNonRoot")) or own.get("runAsUser") == 0:
            problems.append(f"Container {name} may run as root.")
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            problems.append(f"Container {name} may gain privileges.")
        if at(own, "capabilities", "drop") != ["ALL"] or at(own, "capabilities", "add"):
            problems.append(f"Container {name} keeps capabilities.")
        profile = at(own, "seccompProfile", "type") or at(shared, "seccompProfile", "type")
        if profile not in ("RuntimeDefault", "Localhost"):
            problems.append(f"Container {name} has no seccomp profile.")
    return problems


@rule("read-only-root", "Containers cannot write their image's files.")
def read_only_root(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        for container in pods.all_containers:
            if at(container, "securityContext", "readOnlyRootFilesystem") is not True:
                yield pods.name, f"Container {container.get('name')} has a writable root file system."


@rule("image", "Images have a tag that is not latest, or a digest.")
def image(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        for container in pods.all_containers:
            match = IMAGE.fullmatch(str(container.get("image", "")))
            if match is None or not (match["tag"] or match["digest"]) or match["tag"] == "latest":
                yield pods.name, f"Container {container.get('name')} runs {container.get('image')}."


@rule("one-image", "The engine is built by the image that serves it.")
def one_image(manifests: Manifests) -> Complaints:
    images = {str(item.get("image")) for pods in manifests.pods() for item in pods.all_containers}
    if len(images) > 1:
        yield "pods", f"Images differ: {', '.join(sorted(images))}."


@rule("token", "Nothing gets a token for the cluster's API.")
def token(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        if pods.spec.get("automountServiceAccountToken") is not False:
            yield pods.name, "automountServiceAccountToken is not false."
        if pods.spec.get("serviceAccountName", "default") == "default":
            yield pods.name, "It runs under the default service account."
    for item in manifests.of_kind("ServiceAccount"):
        if item.get("automountServiceAccountToken") is not False:
            yield name_of(item), "automountServiceAccountToken is not false."


@rule("service-links", "The cluster does not set EW_ variables for services of that name.")
def service_links(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        if pods.spec.get("enableServiceLinks") is not False:
            yield pods.name, "enableServiceLinks is not false."


@rule("secrets", "Secrets come by reference: none is in a manifest.")
def secrets(manifests: Manifests) -> Complaints:
    for item in manifests.of_kind("Secret"):
        if item.get("data") or item.get("stringData"):
            yield name_of(item), "It carries its secret; refer to one that is made in the cluster."
    for pods in manifests.pods():
        for container in pods.all_containers:
            for problem in _literal_secrets(container):
                yield pods.name, problem


def _literal_secrets(container: Document) -> list[str]:
    name = container.get("name")
    named = [
        f"Container {name} has {item['name']} as plain text."
        for item in container.get("env") or []
        if SECRET_NAME.search(item.get("name", "")) and item.get("value")
    ]
    texts = [str(part) for key in ("args", "command") for part in container.get(key) or []]
    shown = [
        f"Container {name} has a secret in its command line." for text in texts if SECRET_VALUE.search(text)
    ]
    return named + shown


@rule("api-keys", "Every request needs a key: the server's key file is a Secret.")
def api_keys(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        environment = {item.get("name"): item.get("value") for item in at(pods.server, "env") or []}
        path = environment.get("EW_KEYS_FILE") or ""
        mount = pods.mount(pods.server or {}, path) if path else {}
        if not at(pods.volume(mount.get("name", "")), "secret", "secretName"):
            yield (
                pods.name,
                "EW_KEYS_FILE does not lead into a mounted Secret; each pod would make its own key.",
            )


@rule("namespace", "The namespace admits restricted pods only.")
def namespace(manifests: Manifests) -> Complaints:
    for item in manifests.of_kind("Namespace"):
        if at(item, "metadata", "labels", "pod-security.kubernetes.io/enforce") != "restricted":
            yield name_of(item), "pod-security.kubernetes.io/enforce is not restricted."
