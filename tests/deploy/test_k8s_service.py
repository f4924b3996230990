"""What the service itself does for a cluster: mounted keys, a drain of its own, ranks on several nodes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.paths import Home
from proxy.keys import KeyStore
from runtime import teardown
from runtime.launchers.choose import plan_launch
from runtime.launchers.machine import LocalServer, Machine
from runtime.launchers.request import LaunchRequest, ServedModel
from runtime.nvidia import Gpu

SERVICE_USER = 10001


def _secret(tmp_path: Path, mode: int) -> Path:
    """A key file as a cluster mounts it: root's, readable by the service's group."""
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": []}))
    path.chmod(mode)
    return path


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file of root's")
@pytest.mark.parametrize(("mode", "allowed"), [(0o440, True), (0o444, False), (0o460, False)])
def test_a_mounted_secret_may_be_read_by_the_services_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, allowed: bool
) -> None:
    store = KeyStore(_secret(tmp_path, mode))
    monkeypatch.setattr(os, "getuid", lambda: SERVICE_USER)
    if allowed:
        assert store.records() == ()
    else:
        with pytest.raises(ConfigError) as refused:
            store.records()
        assert refused.value.code == "key_file_open"


def test_a_users_own_key_file_may_not_be_read_by_its_group(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        KeyStore(_secret(tmp_path, 0o640)).records()


def test_the_key_file_can_be_a_mounted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Home(tmp_path).keys == tmp_path / "run" / "keys.json"
    monkeypatch.setenv("EW_KEYS_FILE", "/etc/ew/keys/keys.json")
    assert Home(tmp_path).keys == Path("/etc/ew/keys/keys.json")


def test_the_longest_stop_covers_each_of_its_phases() -> None:
    phases = 40 + teardown.PROXY_CLOSE_SECONDS + teardown.TERMINATE_SECONDS
    assert teardown.longest_stop_seconds(40) > phases


def test_a_model_on_two_nodes_needs_half_of_its_gpus_here(tmp_path: Path) -> None:
    model = ServedModel("m", tmp_path, era="engine", tp_size=8, pp_size=2, num_nodes=2, tensorrt_llm="1.2.1")
    (tmp_path / "backends" / "tensorrtllm").mkdir(parents=True)
    (tmp_path / "backends" / "tensorrtllm" / "libtriton_tensorrtllm.so").touch()
    server = LocalServer(tmp_path / "bin" / "tritonserver", tmp_path, tensorrt_llm="1.2.1")
    gpus = tuple(Gpu(index, "H100", 80 << 30, 80 << 30, "9.0") for index in range(8))
    request = LaunchRequest("cuda-trt", (model,), tmp_path, tmp_path, tmp_path, "abc")
    plan = plan_launch(request, Machine(local=server, gpus=gpus, mpirun=Path("/usr/bin/mpirun")))
    assert plan.gpus == tuple(range(8))
    assert plan.command.arguments.count("-n") == 16
