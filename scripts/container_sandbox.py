"""Runs a command as a container engine would, with nothing but Linux: for tests where there is no engine.

A namespace of its own for processes, mounts and, on request, the network; a read-only root file system with
tmpfs for /tmp and /dev/shm; volumes; another user; no capabilities and no way to get any. The command is
process 1. Needs root, or a kernel that lets users make user namespaces; `obstacle` says what is missing.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Box:
    """What the command sees: `volumes` are (outside, inside) and can be written to, as far as `user` may.

    `user` is (uid, gid), None for the caller's own. With `root` "/" it sees this machine's files, read-only;
    of /tmp only what `kept` names, which is read-only, too.
    """

    root: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()
    user: tuple[int, int] | None = None
    folder: str = "/"
    network: bool = False


@dataclass(frozen=True)
class Running:
    """A box at work: `pid` is its process 1, as this machine numbers it."""

    box: Box
    outer: subprocess.Popen[bytes]
    pid: int

    def signal(self, number: int) -> None:
        """Send process 1 a signal, as `docker stop` and `docker kill` do."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code of process 1; not 0 when a signal ended it."""
        return self.outer.wait(seconds)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one more command inside, as the same user, as `docker exec` does."""
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--net", "--root"]
        enter += ["--user", "--preserve-credentials"] if os.getuid() else []
        inside = [*enter, *_dropped(self.box), "env", f"--chdir={self.box.folder}", *command]
        environment = dict(self.box.environment)
        return subprocess.run(
            inside, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def processes(self) -> dict[int, str]:
        """State letters of everything inside by the pids there; Z has ended and nobody has collected it."""
        done = self.execute("/bin/sh", "-c", "cat /proc/[0-9]*/stat")
        rows = [line.rsplit(")", 1) for line in done.stdout.splitlines() if ")" in line]
        return {int(head.split()[0]): rest.split()[0] for head, rest in rows}


def obstacle() -> str:
    """Why this machine cannot run a box, or ""."""
    for program in ("unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed (package util-linux)"
    probe = [*_unshare(network=True), "mount", "-t", "tmpfs", "probe", "/mnt"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


@contextmanager
def started(box: Box, log: Path) -> Iterator[Running]:
    """Start the box; its output goes to `log`. Whatever is left of it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="ew-box-") as mount_point, log.open("ab") as output:
        document = json.dumps({"box": asdict(box), "mount_point": mount_point})
        command = [*_unshare(network=not box.network), sys.executable, "-I", __file__, document]
        outer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield Running(box, outer, _first_process(outer))
        finally:
            outer.kill()  # --kill-child ends process 1, and with it everything inside
            outer.wait()


def _unshare(*, network: bool) -> list[str]:
    line = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    line += ["--user", "--map-root-user"] if os.getuid() else []
    return [*line, "--net"] if network else line


def _first_process(outer: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    while outer.poll() is None:
        if pids := children.read_text().split():
            return int(pids[0])
    raise RuntimeError(f"The box did not start: unshare ended with {outer.returncode}.")


def _dropped(box: Box) -> list[str]:
    """The command's prefix that gives up root, every capability and the ways to get them back."""
    line = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    if box.user is None:
        return line
    return [*line, f"--reuid={box.user[0]}", f"--regid={box.user[1]}", "--clear-groups"]


def _enter(box: Box, root: Path) -> None:
    """In the new namespaces: put the file system together, go in and become the command."""
    _mount("--make-rprivate", "/")
    _mount("--rbind", box.root, str(root))
    if box.root != "/":
        _mount("--rbind", "/dev", str(root / "dev"))
    _mount("-t", "proc", "proc", str(root / "proc"))
    for name in ("tmp", "dev/shm"):
        _mount("-t", "tmpfs", "-o", "mode=1777,size=512m", "tmpfs", str(root / name))
    _mount("-o", "remount,bind,ro", str(root))
    for path in box.kept:
        _mount("-o", "remount,bind,ro", _attach(Path(path), root / path.lstrip("/")))
    for outside, inside in box.volumes:
        _attach(Path(outside), root / inside.lstrip("/"))
    if not box.network:
        _loopback_up()
    os.chroot(root)
    os.chdir(box.folder)
    command = [*_dropped(box), *box.command]
    os.execvpe(command[0], command, dict(box.environment))


def _attach(outside: Path, inside: Path) -> str:
    """Bind a file or folder; its place is made where the file system lets it, such as in the new /tmp."""
    if not inside.exists():
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.mkdir() if outside.is_dir() else inside.touch()
    _mount("--rbind", str(outside), str(inside))
    return str(inside)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _box(values: Mapping[str, Any]) -> Box:
    volumes = tuple((outside, inside) for outside, inside in values["volumes"])
    user = tuple(values["user"]) if values["user"] else None
    lists = {"command": tuple(values["command"]), "kept": tuple(values["kept"])}
    return Box(**{**values, **lists, "volumes": volumes, "user": user})


if __name__ == "__main__":
    received = json.loads(sys.argv[1])
    _enter(_box(received["box"]), Path(received["mount_point"]))
