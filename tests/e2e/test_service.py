"""The life of a service: start, refuse a second one, drain, stop, crash, foreground, failed start."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from runtime.processes import ProcessRef
from tests.e2e.conftest import LONG_ANSWER, Installation, RunningService, left_behind

pytestmark = pytest.mark.e2e

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def open_stream(service_url: str, key: str, model: str, max_tokens: int) -> http.client.HTTPResponse:
    """A stream whose first event has been read."""
    host, port = service_url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    body = {
        "modelId": model,
        "prompt": "Count from one to one hundred.",
        "maxTokens": max_tokens,
        "minTokens": max_tokens,
    }
    connection.request("POST", "/api/v1/inference/stream", json.dumps(body), {"X-API-Key": key})
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data: ")
    return response


def test_status_shows_a_ready_service(service: RunningService) -> None:
    done = service.installation.run("status", "--json")
    status = json.loads(done.stdout)
    assert done.returncode == 0
    assert status["state"] == "ready"
    assert [model["state"] for model in status["models"]] == ["READY"]
    roles = {process["role"] for process in status["processes"]}
    assert {"triton", "proxy", f"worker {service.model}"} <= roles
    assert all(process["alive"] and process["memory"] > 0 for process in status["processes"])


def test_status_for_people_fits_a_terminal(service: RunningService) -> None:
    done = service.installation.run("status", COLUMNS="100")
    assert done.returncode == 0
    assert "ready" in done.stdout and service.model in done.stdout
    assert service.api_key not in done.stdout


def test_a_second_start_says_what_is_running(service: RunningService) -> None:
    done = service.installation.run("start", "--model", service.model, "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 6
    assert error["code"] == "already_running"
    assert service.model in error["message"] and "./ew stop" in error["hint"]


def test_tritonserver_listens_on_loopback_only(service: RunningService) -> None:
    ports = service.installation.status()["ports"]
    listening = [address.split(":") for table in ("tcp", "tcp6") for address in listeners(table)]
    for name in ("triton_http", "triton_grpc", "triton_metrics"):
        addresses = {address for address, port in listening if int(port, 16) == ports[name]}
        assert addresses and addresses <= LOOPBACK, name


def listeners(table: str) -> list[str]:
    """ADDRESS:PORT in the kernel's hex of every listening socket."""
    path = Path("/proc/net") / table
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return [line.split()[1] for line in lines if line.split()[3] == "0A"]


def test_the_key_is_private_and_in_no_log_or_command_line(service: RunningService) -> None:
    home = service.installation.home
    for name in ("api_key", "keys.json"):
        assert stat.S_IMODE((home / "run" / name).stat().st_mode) == 0o600
    assert service.api_key not in (home / "run" / "keys.json").read_text()
    open_stream(service.url, service.api_key, service.model, 2).read()
    for log in (home / "logs").iterdir():
        assert service.api_key not in log.read_text(errors="replace"), log.name
    for process in service.installation.status()["processes"]:
        assert service.api_key.encode() not in Path(f"/proc/{process['pid']}/cmdline").read_bytes()


def test_logs_show_each_part(service: RunningService) -> None:
    done = service.installation.run("logs", "-n", "400")
    labels = {line.split(" | ")[0].strip() for line in done.stdout.splitlines() if " | " in line}
    assert {"triton", "worker", "proxy"} <= labels
    assert "successfully loaded" in service.installation.run("logs", "triton", "-n", "400").stdout


def test_dry_run_prints_both_commands_and_starts_nothing(tiny: Installation) -> None:
    done = tiny.run(*tiny.start_arguments("--dry-run", "--json"))
    commands = {command["name"]: command for command in json.loads(done.stdout)["commands"]}
    assert done.returncode == 0
    assert "--load-model=tiny" in commands["triton"]["command"]
    assert "--http-address=127.0.0.1" in commands["triton"]["command"]
    assert Path(commands["triton"]["command"][0]).is_file()
    assert f"--port={tiny.port}" in commands["proxy"]["command"]
    assert not (tiny.home / "run").exists()
    assert not (tiny.home / "model_repository").exists()


def test_a_taken_port_is_found_before_anything_starts(tiny: Installation) -> None:
    with socket.create_server(("127.0.0.1", tiny.port)):
        done = tiny.run(*tiny.start_arguments("--json"))
    assert done.returncode == 8
    assert json.loads(done.stdout)["error"]["code"] == "port_in_use"
    assert not (tiny.home / "run" / "service.json").exists()


def test_stop_lets_a_stream_finish_and_leaves_nothing(long: Installation) -> None:
    document = long.start()
    service_id = long.state()["service_id"]
    key = Path(document["key_file"]).read_text().strip()
    stream = open_stream(f"http://127.0.0.1:{long.port}", key, "tiny", LONG_ANSWER)
    command = long.command("stop", "--drain", "120")  # a starved machine takes longer than the default
    stopping = subprocess.Popen(command, env=long.spawn_environment())
    events = stream.read().decode().split("\n\n")
    assert events[-2] == "data: [DONE]"
    assert json.loads(events[-3].removeprefix("data: "))["usage"]["completionTokens"] == LONG_ANSWER
    assert stopping.wait(150) == 0
    assert left_behind(service_id) == []
    for port in document["ports"].values():
        socket.create_server(("127.0.0.1", port)).close()
    assert long.status() == {"state": "stopped"}


def test_after_a_crash_status_tells_and_the_next_start_cleans_up(tiny: Installation) -> None:
    first = tiny.start()
    crashed = tiny.state()["service_id"]
    os.kill(first["pids"]["triton"], signal.SIGKILL)
    done = tiny.run("status", "--json")
    assert (done.returncode, json.loads(done.stdout)["state"]) == (6, "broken")
    second = tiny.start()
    assert left_behind(crashed) == []
    assert second["pids"]["proxy"] != first["pids"]["proxy"]
    os.kill(second["pids"]["triton"], signal.SIGKILL)
    os.kill(second["pids"]["proxy"], signal.SIGKILL)
    tiny.stop()
    assert tiny.status() == {"state": "stopped"}


def test_foreground_shows_logs_and_ends_cleanly_on_sigterm(tiny: Installation) -> None:
    with foreground(tiny) as process:
        service_id = tiny.state()["service_id"]
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "triton | " in output and "proxy  | " in output
    assert left_behind(service_id) == []


def test_foreground_ends_with_an_error_when_a_part_dies(tiny: Installation) -> None:
    with foreground(tiny) as process:
        state = tiny.state()
        os.kill(state["proxy"]["pid"], signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "proxy ended unexpectedly" in output
    assert left_behind(state["service_id"]) == []


def test_foreground_ends_when_stopped_from_elsewhere(tiny: Installation) -> None:
    with foreground(tiny) as process:
        tiny.stop()
        process.communicate(timeout=60)
    assert process.returncode == 0


def foreground(installation: Installation) -> subprocess.Popen[str]:
    """A ready `ew start --foreground`; its stdout and stderr are one pipe."""
    process = subprocess.Popen(
        installation.command(*installation.start_arguments("--foreground")),
        env=installation.spawn_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Serving tiny"):
            break
    assert process.poll() is None
    return process


def test_a_start_that_fails_tells_why_and_leaves_nothing(tiny: Installation) -> None:
    weights = tiny.home / "models" / "tiny" / "checkpoint" / "rank0.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    done = tiny.run(*tiny.start_arguments("--json"))
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 6, done.stdout
    assert error["code"] == "start_failed"
    assert "rank0.safetensors" in error["why"]
    assert not (tiny.home / "run" / "service.json").exists()
    assert tiny.status() == {"state": "stopped"}


def test_ctrl_c_while_starting_undoes_the_start(tiny: Installation) -> None:
    process = subprocess.Popen(
        tiny.command(*tiny.start_arguments()), env=tiny.spawn_environment(), stderr=subprocess.PIPE, text=True
    )
    record = tiny.home / "run" / "service.json"
    deadline = time.monotonic() + 30
    while not record.exists() or tiny.state()["servers"][0]["process"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    state = tiny.state()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped again" in errors
    assert left_behind(state["service_id"]) == []
    assert ProcessRef.of(state["servers"][0]["process"]["pid"]) is None
    assert not record.exists()


def test_models_go_and_come_back_while_others_stay(tiny: Installation) -> None:
    """Two models behind one port; one is unloaded, really gone, and loaded again; then all is restarted."""
    shutil.copytree(tiny.home / "models" / "tiny", tiny.home / "models" / "second")
    document = tiny.start("--model", "models/second")
    url, key = f"http://127.0.0.1:{tiny.port}", Path(document["key_file"]).read_text().strip()
    assert document["models"] == ["tiny", "second"]
    assert states(tiny) == {"tiny": "READY", "second": "READY"}
    for model in document["models"]:
        assert open_stream(url, key, model, 4).read().decode().rstrip().endswith("data: [DONE]")

    unloaded = json.loads(tiny.run("stop", "--model", "second", "--json").stdout)
    assert unloaded["memory_freed"] > 10 * 2**20
    shown = tiny.run("status", "--json")
    assert (shown.returncode, json.loads(shown.stdout)["state"]) == (0, "ready")
    wait_for_states(tiny, {"tiny": "READY", "second": "UNLOADED"})
    roles = [process["role"] for process in tiny.status()["processes"]]
    assert "worker tiny" in roles and "worker second" not in roles
    assert open_stream(url, key, "tiny", 4).read().decode().rstrip().endswith("data: [DONE]")

    assert tiny.run("stop", "--model", "tiny").returncode == 0
    none = tiny.run("status", "--json")
    assert (none.returncode, json.loads(none.stdout)["state"]) == (0, "unloaded")
    assert tiny.run("start", "--model", "tiny").returncode == 0

    loaded = tiny.run("start", "--model", "second", "--json")
    assert loaded.returncode == 0, loaded.stdout
    assert states(tiny) == {"tiny": "READY", "second": "READY"}
    assert open_stream(url, key, "second", 4).read().decode().rstrip().endswith("data: [DONE]")

    before = tiny.state()
    again = tiny.run("restart", "--json")
    assert again.returncode == 0, again.stdout
    assert json.loads(again.stdout)["models"] == ["tiny", "second"]
    assert tiny.state()["service_id"] != before["service_id"]
    assert tiny.state()["port"] == tiny.port
    assert left_behind(before["service_id"]) == []


def wait_for_states(installation: Installation, expected: dict[str, str]) -> None:
    """The worker has gone first; tritonserver's own word for it may come a moment later."""
    deadline = time.monotonic() + 20
    while (found := states(installation)) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def states(installation: Installation) -> dict[str, str]:
    return {model["model"]: model["state"] for model in installation.status()["models"]}
