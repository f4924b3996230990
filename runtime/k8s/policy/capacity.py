"""What pods take: requests and limits, /dev/shm, GPUs, volumes, spread."""

from __future__ import annotations

from runtime.k8s.manifests import Manifests, Pods, at, selects
from runtime.k8s.pods import GPU, PRODUCT_LABEL, Document
from runtime.k8s.policy.rules import Complaints, rule

UNITS = {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "m": 1e-3,
}
SHM_LEAST = 2**30


@rule(
    "resources", "Every container has requests and limits of CPU and memory; memory's are equal for servers."
)
def resources(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        for container in pods.all_containers:
            missing = [
                f"{part}.{name}"
                for part in ("requests", "limits")
                for name in ("cpu", "memory")
                if at(container, "resources", part, name) is None
            ]
            if missing:
                yield pods.name, f"Container {container.get('name')} has no {', '.join(missing)}."
        memory = [at(pods.server, "resources", part, "memory") for part in ("requests", "limits")]
        if pods.server is not None and memory[0] != memory[1]:
            yield pods.name, f"A model's memory is not given back: request {memory[0]}, limit {memory[1]}."


@rule("gpus", "GPUs are asked for in whole numbers, equally, on nodes of one type that let the pod in.")
def gpus(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        for container in pods.all_containers:
            asked, limit = (at(container, "resources", part, GPU) for part in ("requests", "limits"))
            if asked is not None and str(asked) != str(limit):
                yield pods.name, f"{GPU} has request {asked} and limit {limit}; they must be equal."
        if not _gpus(pods):
            continue
        if not at(pods.spec, "nodeSelector", PRODUCT_LABEL):
            yield pods.name, f"Nothing chooses the GPU type: nodeSelector has no {PRODUCT_LABEL}."
        if not any(item.get("key") == GPU for item in pods.spec.get("tolerations") or []):
            yield pods.name, f"The taint {GPU} of GPU nodes is not tolerated."


@rule("one-gpu-type", "Engines are built on the GPU type that serves them.")
def one_gpu_type(manifests: Manifests) -> Complaints:
    with_gpus = [pods for pods in manifests.pods() if _gpus(pods)]
    types = {pods.name: at(pods.spec, "nodeSelector", PRODUCT_LABEL) for pods in with_gpus}
    if len(set(types.values())) > 1:
        yield ", ".join(types), f"GPU types differ: {', '.join(map(str, types.values()))}."


@rule("shm", "Serving pods have a /dev/shm in memory, with a limit that the container's memory covers.")
def shm(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        for container in pods.containers:
            if pods.server is None and not at(container, "resources", "limits", GPU):
                continue
            volume = at(pods.volume(pods.mount(container, "/dev/shm").get("name", "")), "emptyDir") or {}
            problem = _shm_problem(volume, container)
            if problem:
                yield pods.name, problem


def _shm_problem(volume: Document, container: Document) -> str:
    if volume.get("medium") != "Memory":
        return f"Container {container.get('name')} has no /dev/shm in memory; 64 MiB are the default."
    size = in_bytes(volume.get("sizeLimit"))
    limit = in_bytes(at(container, "resources", "limits", "memory"))
    if size < SHM_LEAST:
        return f"/dev/shm has {volume.get('sizeLimit') or 'no sizeLimit'}; Triton and NCCL need 1Gi at least."
    if limit <= size:
        return f"/dev/shm ({volume.get('sizeLimit')}) counts as the container's memory, whose limit is lower."
    return ""


@rule("volumes", "Volumes that several pods share can be; served pods cannot write the models.")
def volumes(manifests: Manifests) -> Complaints:
    copies = most_copies(manifests)
    for pods in manifests.servers():
        for mount in at(pods.server, "volumeMounts") or []:
            claim = at(pods.volume(mount.get("name", "")), "persistentVolumeClaim", "claimName")
            if claim is None:
                continue
            if not mount.get("readOnly"):
                yield pods.name, f"{mount.get('mountPath')} is writable; a server only reads its models."
            modes = at(manifests.named("PersistentVolumeClaim", claim), "spec", "accessModes") or []
            if copies > 1 and modes and not {"ReadWriteMany", "ReadOnlyMany"} & set(modes):
                yield pods.name, f"Up to {copies} copies share {claim}, which is {', '.join(modes)}."


@rule("empty-dirs", "Every emptyDir has a size limit, so that a full one ends its pod and not its node.")
def empty_dirs(manifests: Manifests) -> Complaints:
    for pods in manifests.pods():
        for volume in pods.spec.get("volumes") or []:
            if "emptyDir" in volume and not at(volume, "emptyDir", "sizeLimit"):
                yield pods.name, f"The emptyDir {volume.get('name')} has no sizeLimit."


@rule("spread", "Copies are spread over nodes by a constraint that selects them.")
def spread(manifests: Manifests) -> Complaints:
    for pods in manifests.servers():
        constraints = pods.spec.get("topologySpreadConstraints") or []
        keys = {
            item.get("topologyKey") for item in constraints if selects(item.get("labelSelector"), pods.labels)
        }
        if "kubernetes.io/hostname" not in keys:
            yield pods.name, "No topologySpreadConstraint on kubernetes.io/hostname selects these pods."


def most_copies(manifests: Manifests) -> int:
    """How many servers there may be at once."""
    counts = [1]
    for item in manifests.of_kind("HorizontalPodAutoscaler"):
        counts.append(at(item, "spec", "maxReplicas") or 1)
    for item in manifests.of_kind("ScaledObject"):
        counts.append(at(item, "spec", "maxReplicaCount") or 100)
    counts += [at(pods.owner, "spec", "replicas") or 1 for pods in manifests.servers()]
    return max(counts)


def in_bytes(quantity: object) -> float:
    """A Kubernetes quantity as a number; 0 for none."""
    text = str(quantity or "0")
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * UNITS.get(unit, 1)


def _gpus(pods: Pods) -> bool:
    return any(at(item, "resources", "limits", GPU) for item in pods.all_containers)
