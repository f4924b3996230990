"""Ranks on several nodes: the pods' scripts, and (slow) real ssh and mpirun between two of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.paths import SOURCE_ROOT
from runtime.k8s import multinode
from runtime.k8s.multinode import (
    HOSTFILE,
    MPI,
    OPEN_MPI,
    SERVE_RANKS,
    SSH,
    SSH_CONFIG,
    SSHD_CONFIG,
    WAIT_FOR_RANKS,
)
from runtime.k8s.pods import HOME, USER

GROUP = {"LWS_LEADER_ADDRESS": "ew-0.ew.llm", "LWS_GROUP_SIZE": "3", "GPUS": "8"}
DOCKERFILE = SOURCE_ROOT / "deploy" / "k8s" / "Dockerfile.multinode"
TOOLS = ("ip", "unshare", "setpriv", "mpirun", "ssh", "ssh-keygen", "sshd")
ADDRESSES = {"leader": "10.209.0.1", "worker": "10.209.0.2"}


def script(folder: Path, name: str, text: str) -> Path:
    """An executable on a PATH of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_leader_lists_its_workers_in_order_and_waits_for_each(tmp_path: Path) -> None:
    """The second worker lets it in at the third try only."""
    programs = tmp_path / "bin"
    script(programs, "ssh", f'echo "$3" >> {tmp_path}/tries; n=$(grep -c ew-0-2 {tmp_path}/tries); '
           'case "$3" in ew-0-2.*) test "$n" -ge 3;; esac')  # fmt: skip
    script(programs, "sleep", "exit 0")
    script(programs, "hostname", "echo ew-0")
    hostfile = tmp_path / "hostfile"
    text = WAIT_FOR_RANKS.replace(HOSTFILE, str(hostfile))
    done = subprocess.run(
        ["/bin/sh", "-ec", text], env={"PATH": f"{programs}:/usr/bin:/bin", **GROUP}, timeout=20
    )
    assert done.returncode == 0
    assert hostfile.read_text().splitlines() == [
        "ew-0 slots=8",
        "ew-0-1.ew.llm slots=8",
        "ew-0-2.ew.llm slots=8",
    ]
    tries = (tmp_path / "tries").read_text().split()
    assert tries == ["ew-0-1.ew.llm", *["ew-0-2.ew.llm"] * 3]


def test_a_worker_renders_and_hands_its_variables_to_its_ranks(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    script(programs, "ew", f'echo "$@" > {tmp_path}/rendered')
    script(programs, "sshd", f'echo "$@" > {tmp_path}/sshd')
    text = SERVE_RANKS.format(models="--model m", mpi=MPI).replace("/usr/sbin/sshd", "sshd")
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path), "LD_LIBRARY_PATH": "/opt/x"}
    subprocess.run(["/bin/sh", "-ec", text], env=environment, timeout=20, check=True)
    assert (tmp_path / "rendered").read_text() == "render --model m\n"
    assert (tmp_path / "sshd").read_text() == f"-D -e -f {MPI}/sshd_config\n"
    assert "LD_LIBRARY_PATH=/opt/x" in (tmp_path / ".ssh" / "environment").read_text().splitlines()


def test_a_worker_that_cannot_render_does_not_serve_ranks(tmp_path: Path) -> None:
    script(tmp_path / "bin", "ew", "exit 4")
    text = SERVE_RANKS.format(models="--model m", mpi=MPI)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    assert subprocess.run(["/bin/sh", "-ec", text], env=environment, timeout=20).returncode == 4


def test_the_image_has_what_ranks_need() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    for part in ("openssh-client openssh-server", "usermod --shell /bin/sh", f"USER {USER}:{USER}"):
        assert part in text


def test_hadolint_finds_nothing_in_the_image() -> None:
    program = Path(sys.prefix) / "bin" / "hadolint"
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


# --- two pods as network namespaces ------------------------------------------------------------------------


class Cluster:
    """Two network namespaces; a pod has its own home, /etc/ew, names and no privileges."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        self.places: list[Path] = []

    def make(self) -> None:
        folder = self.folder
        self.places = [Path(place) for place in (HOME, "/etc/ew") if not Path(place).exists()]
        for place in self.places:
            place.mkdir()  # what the pods mount over
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ew", "-f", folder / "key"], check=True
        )
        kind, public = (folder / "key.pub").read_text().split()[:2]
        secret = {
            "ssh-privatekey": (folder / "key").read_text(),
            "authorized_keys": f"{kind} {public}\n",
            "known_hosts": f"* {kind} {public}\n",
        }
        config = {"ssh_config": SSH_CONFIG, "sshd_config": SSHD_CONFIG}
        for pod in ADDRESSES:
            _mounted(folder / pod / Path(SSH).relative_to("/etc"), secret)
            _mounted(folder / pod / Path(MPI).relative_to("/etc"), config)
            (folder / pod / "home").mkdir()
            os.chown(folder / pod / "home", USER, USER)
        shell = f"ew:x:{USER}:{USER}::{HOME}:/bin/sh\n"
        (folder / "passwd").write_text(Path("/etc/passwd").read_text() + shell)
        names = {"leader": "ew-0.ew.llm ew-0", "worker": "ew-0-1.ew.llm"}
        lines = [f"{address} {names[pod]}\n" for pod, address in ADDRESSES.items()]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        script(folder / "bin", "ew", "exit 0")
        script(
            folder / "bin",
            "tritonserver",
            'echo "$OMPI_COMM_WORLD_RANK $(hostname) $(id -u) $MARKER $1"; sleep 1',
        )
        _network()

    def command(self, pod: str, hostname: str, text: str) -> list[str]:
        inside = f"""
            mount --make-rprivate /
            mount --bind {self.folder}/{pod}/home {HOME}
            mount --bind {self.folder}/{pod}/ew /etc/ew
            mount --bind {self.folder}/passwd /etc/passwd
            mount --bind {self.folder}/hosts /etc/hosts
            hostname {hostname}
            cd {HOME}
            exec setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs \
                --bounding-set=-all --inh-caps=-all /bin/sh -ec "$1"
        """
        return ["ip", "netns", "exec", f"ewt-{pod}", "unshare", "-m", "-u", "sh", "-ec", inside, "sh", text]

    def environment(self, pod: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return {
            "PATH": path,
            "HOME": HOME,
            "MARKER": f"of-{pod}",
            **GROUP,
            "LWS_GROUP_SIZE": "2",
            "GPUS": "2",
        }

    def start(self, pod: str, hostname: str, text: str) -> None:
        command, environment = self.command(pod, hostname, text), self.environment(pod)
        self.started.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def run(self, pod: str, hostname: str, text: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment(pod), **more}
        return subprocess.run(
            self.command(pod, hostname, text), env=environment, capture_output=True, text=True, timeout=60
        )

    def close(self) -> None:
        for process in self.started:
            process.terminate()
            process.wait(10)
        for pod in ADDRESSES:
            subprocess.run(["ip", "netns", "del", f"ewt-{pod}"], check=False)
        for place in self.places:
            place.rmdir()


def _mounted(folder: Path, files: dict[str, str]) -> None:
    """As a cluster mounts it: root's, readable by the group only."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
        os.chown(folder / name, 0, USER)
        (folder / name).chmod(0o440)


def _network() -> None:
    for pod in ADDRESSES:
        subprocess.run(["ip", "netns", "add", f"ewt-{pod}"], check=True)
    pair = ["ip", "link", "add", "ewt-a", "type", "veth", "peer", "name", "ewt-b"]
    subprocess.run(pair, check=True)
    for (pod, address), link in zip(ADDRESSES.items(), ("ewt-a", "ewt-b"), strict=True):
        inside = ["ip", "-n", f"ewt-{pod}"]
        subprocess.run(["ip", "link", "set", link, "netns", f"ewt-{pod}"], check=True)
        subprocess.run([*inside, "addr", "add", f"{address}/24", "dev", link], check=True)
        for device in (link, "lo"):
            subprocess.run([*inside, "link", "set", device, "up"], check=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    assert not missing, f"install openmpi-bin, openssh-server and iproute2; missing: {missing}"
    assert os.getuid() == 0, "network namespaces need root"
    with tempfile.TemporaryDirectory(prefix="ew-pods-") as folder:
        Path(folder).chmod(0o755)  # the pods' user reads below it
        made = Cluster(Path(folder))
        try:
            made.make()
            yield made
        finally:
            made.close()


@pytest.mark.slow
def test_ranks_start_on_both_pods_over_ssh_without_privileges(cluster: Cluster) -> None:
    cluster.start("worker", "ew-0-1", SERVE_RANKS.format(models="--model m", mpi=MPI))
    time.sleep(0.5)
    waited = cluster.run("leader", "ew-0", WAIT_FOR_RANKS)
    assert waited.returncode == 0, waited.stderr
    line = "mpirun -n 1 tritonserver a : -n 1 tritonserver b : -n 1 tritonserver c : -n 1 tritonserver d"
    done = cluster.run("leader", "ew-0", line, **OPEN_MPI)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"0 ew-0 {USER} of-leader a",
        f"1 ew-0 {USER} of-leader b",
        f"2 ew-0-1 {USER} of-worker c",
        f"3 ew-0-1 {USER} of-worker d",
    ]


def test_open_mpi_is_told_by_variables_only() -> None:
    assert multinode.OPEN_MPI["OMPI_MCA_plm_rsh_agent"] == f"ssh -F {MPI}/ssh_config"
    assert all(name.startswith("OMPI_MCA_") for name in OPEN_MPI)
