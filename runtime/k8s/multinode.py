"""A model over several nodes: a LeaderWorkerSet whose leader starts the ranks with mpirun over ssh.

The leader is the served pod; its `ew start` runs tritonserver's ranks under mpirun, which Open MPI's own
variables point at the workers. A worker renders the same repository and waits in sshd.
"""

from __future__ import annotations

import copy
from typing import Any

from runtime.k8s import pods
from runtime.k8s.decisions import Decisions
from runtime.k8s.pods import Document
from runtime.k8s.sizing import Resources
from runtime.k8s.values import Values

API = "leaderworkerset.x-k8s.io/v1"
RANK = {**pods.LABELS, "app.kubernetes.io/component": "rank"}
SSH_PORT = 2222
SSH = "/etc/ew/ssh"
MPI = "/etc/ew/mpi"
HOSTFILE = f"{pods.HOME}/hostfile"
SSH_CONFIG = f"""Host *
  Port {SSH_PORT}
  IdentityFile {SSH}/ssh-privatekey
  UserKnownHostsFile {SSH}/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  BatchMode yes
  LogLevel ERROR
"""
SSHD_CONFIG = f"""Port {SSH_PORT}
HostKey {SSH}/ssh-privatekey
AuthorizedKeysFile {SSH}/authorized_keys
PidFile none
UsePAM no
# The key is a mounted Secret: root's file that the service's group may read.
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
# Ranks need the container's own variables, which ssh does not pass on.
PermitUserEnvironment yes
AllowTcpForwarding no
X11Forwarding no
"""
# Slots in the order of the workers; a worker is there when its sshd lets the leader in.
WAIT_FOR_RANKS = f"""host=${{LWS_LEADER_ADDRESS%%.*}}
domain=${{LWS_LEADER_ADDRESS#*.}}
echo "$(hostname) slots=$GPUS" > {HOSTFILE}
index=1
while [ "$index" -lt "$LWS_GROUP_SIZE" ]; do
  worker=$host-$index.$domain
  echo "$worker slots=$GPUS" >> {HOSTFILE}
  until ssh -F {MPI}/ssh_config "$worker" true; do sleep 2; done
  index=$((index + 1))
done
"""
SERVE_RANKS = """ew render {models}
mkdir -p "$HOME/.ssh"
env | grep -E '^[A-Za-z_][A-Za-z0-9_]*=' > "$HOME/.ssh/environment"
exec /usr/sbin/sshd -D -e -f {mpi}/sshd_config
"""
# The leader drains first; its ranks here must outlive that.
UNTIL_RANKS_END = "while grep -qsx tritonserver /proc/[0-9]*/comm; do sleep 1; done"
OPEN_MPI = {
    "OMPI_MCA_orte_default_hostfile": HOSTFILE,
    "OMPI_MCA_orte_keep_fqdn_hostnames": "1",
    "OMPI_MCA_plm_rsh_agent": f"ssh -F {MPI}/ssh_config",
    "OMPI_MCA_rmaps_base_mapping_policy": "slot",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


def resources(base: Document, patch: Document, decided: Decisions) -> list[Document]:
    """The LeaderWorkerSet and what its ranks need; `base` is the Deployment that it replaces."""
    leader = pods.merged(base["spec"]["template"], patch)
    leader = pods.merged(leader, _leader_patch(decided.size, decided.values))
    leader["spec"]["tolerations"] = copy.deepcopy(pods.TOLERATIONS)
    worker = _worker(leader, decided)
    return [_set(leader, worker, decided), _ssh_files(), _network_policy()]


def _set(leader: Document, worker: Document, decided: Decisions) -> Document:
    spec: Document = {
        "startupPolicy": "LeaderCreated",  # the leader waits for its workers itself
        "networkConfig": {"subdomainPolicy": "Shared"},
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {"maxUnavailable": 0, "maxSurge": 1},
        },
        "leaderWorkerTemplate": {
            "size": decided.pool.nodes,
            "restartPolicy": "RecreateGroupOnPodRestart",  # MPI cannot take a lost rank back
            "leaderTemplate": leader,
            "workerTemplate": worker,
        },
    }
    if not decided.is_autoscaled:
        spec["replicas"] = decided.replicas[0]
    metadata = {"name": pods.NAME, "labels": dict(pods.SERVER)}
    return {"apiVersion": API, "kind": "LeaderWorkerSet", "metadata": metadata, "spec": spec}


def _ssh_files() -> Document:
    data = {"ssh_config": SSH_CONFIG, "sshd_config": SSHD_CONFIG}
    metadata = {"name": "ew-mpi", "labels": dict(pods.LABELS)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _leader_patch(size: Resources, values: Values) -> Document:
    environment = [{"name": name, "value": value} for name, value in OPEN_MPI.items()]
    wait: Document = {
        "name": "ranks",
        "image": pods.NAME,
        "command": ["/bin/sh", "-ec", WAIT_FOR_RANKS],
        "env": [{"name": "GPUS", "value": str(size.gpus)}],
        "resources": copy.deepcopy(pods.SMALL),
        "securityContext": copy.deepcopy(pods.CONFINED),
        "volumeMounts": [{"name": "home", "mountPath": pods.HOME}, *_ssh_mounts()],
    }
    return {
        "spec": {
            "initContainers": [wait],
            "containers": [{"name": "server", "env": environment, "volumeMounts": _ssh_mounts()}],
            "volumes": [
                {"name": "ssh", "secret": {"secretName": values.ssh_secret, "defaultMode": 0o440}},
                {"name": "mpi", "configMap": {"name": "ew-mpi"}},
            ],
        }
    }


def _ssh_mounts() -> list[dict[str, Any]]:
    return [
        {"name": "ssh", "mountPath": SSH, "readOnly": True},
        {"name": "mpi", "mountPath": MPI, "readOnly": True},
    ]


def _worker(leader: Document, decided: Decisions) -> Document:
    """The leader's pod with sshd in place of the service."""
    spec = copy.deepcopy(leader["spec"])
    server = next(item for item in spec["containers"] if item["name"] == "server")
    models = " ".join(f"--model {model_id}" for model_id in decided.paths)
    kept = [mount for mount in server["volumeMounts"] if mount["name"] != "keys"]
    rank: Document = {
        "name": "rank",
        "image": pods.NAME,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-ec", SERVE_RANKS.format(models=models, mpi=MPI)],
        "ports": [{"name": "ssh", "containerPort": SSH_PORT, "protocol": "TCP"}],
        "readinessProbe": {"tcpSocket": {"port": "ssh"}, "periodSeconds": 5, "timeoutSeconds": 5},
        "resources": pods.requirements(decided.size),
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", UNTIL_RANKS_END]}}},
        "securityContext": copy.deepcopy(pods.CONFINED),
        "volumeMounts": kept,
    }
    spec["containers"] = [rank]
    spec["initContainers"] = [item for item in spec["initContainers"] if item["name"] == "packages"]
    spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != "keys"]
    spec["terminationGracePeriodSeconds"] = decided.life.grace + 15
    del spec["topologySpreadConstraints"]  # they are the leaders'; a group's workers take what is free
    return {"metadata": {"labels": dict(RANK)}, "spec": spec}


def _network_policy() -> Document:
    """Ranks of a group talk on ports that MPI and NCCL choose; nobody else reaches them."""
    components = {"key": "app.kubernetes.io/component", "operator": "In", "values": ["server", "rank"]}
    ranks = {"matchLabels": dict(pods.LABELS), "matchExpressions": [components]}
    dns = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "ew-ranks"},
        "spec": {
            "podSelector": copy.deepcopy(ranks),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": copy.deepcopy(ranks)}]}],
            "egress": [{"to": [{"podSelector": copy.deepcopy(ranks)}]}, {"ports": dns}],
        },
    }
