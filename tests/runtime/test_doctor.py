"""Checks of machine, project and service; what leaves the machine in a bundle."""

from __future__ import annotations

import json
import stat
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from runtime import logs, nvidia
from runtime.doctor import environments, machine, network, service
from runtime.doctor.bundle import write_bundle
from runtime.doctor.catalog import CATALOG
from runtime.doctor.diagnosis import diagnose
from runtime.doctor.examine import Report, examine
from runtime.doctor.finding import Finding, has_errors, in_order
from runtime.doctor.redact import HIDDEN, redact
from runtime.environments import registry
from runtime.environments.registry import Environment
from runtime.launchers.machine import Docker
from runtime.nvidia import Gpu, Nvidia
from runtime.ports import TritonPorts
from runtime.processes import boot_id
from runtime.state import Server, Service, save
from scripts import make_doctor_docs

GIB = 2**30
KEY = "ew-" + "A1b2" * 11


def ids(findings: Iterable[Finding]) -> list[str]:
    return [finding.id for finding in findings]


def gpu(index: int, capability: str = "9.0", free: int = 70) -> Gpu:
    return Gpu(index, "H100", 80 * GIB, free * GIB, capability)


def test_gpus_are_judged() -> None:
    assert ids(machine.check_gpus(Nvidia("580.1", "13.0", (gpu(0),)))) == []
    assert ids(machine.check_gpus(Nvidia("535.1", "12.2", (gpu(0),)))) == ["driver_old"]
    assert ids(machine.check_gpus(Nvidia("580.1", "13.0", (gpu(0, "7.5"),)))) == ["gpu_generation_old"]
    assert ids(machine.check_gpus(Nvidia("580.1", "13.0", (gpu(0, free=3),)))) == ["gpu_memory_taken"]
    assert ids(machine.check_gpus(Nvidia(problem="nvidia-smi is not on the path"))) == ["gpu_none"]
    mismatch = Nvidia(problem="Failed to initialize NVML: Driver/library version mismatch")
    assert ids(machine.check_gpus(mismatch)) == ["driver_trouble"]


def test_little_space_is_found(monkeypatch: pytest.MonkeyPatch, ew_home: Path) -> None:
    for limit in ("LOW_DISK", "LOW_MEMORY", "SMALL_SHM"):
        monkeypatch.setattr(machine, limit, 1 << 60)
    assert ids(machine.check_space()) == ["disk_low", "memory_low", "shm_small"]
    for limit in ("LOW_DISK", "LOW_MEMORY", "SMALL_SHM"):
        monkeypatch.setattr(machine, limit, 0)
    assert ids(machine.check_space()) == []


def test_containers_and_mpi_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    seen = Nvidia("580.1", "13.0", (gpu(0), gpu(1)))
    assert ids(machine.check_containers(Docker(), Nvidia())) == ["docker_unusable"]
    without = Docker(Path("/usr/bin/docker"), "", False)
    assert ids(machine.check_containers(without, seen)) == ["docker_without_gpu", "mpirun_missing"]
    assert ids(machine.check_containers(without, Nvidia())) == []


def test_this_machine_can_run_the_cpu_engine() -> None:
    assert ids(machine.check_platform()) == []


def test_an_unfinished_and_a_broken_environment_say_how_to_mend_them(ew_home: Path) -> None:
    registry.save(Environment("half", "cuda-vllm", "venv", "d", done=("create",)))
    registry.save(Environment("gone", "cuda-trt", "venv", "d", prefix="/nowhere", finished=True))
    found = {finding.where: finding for finding in environments.check_environments()}
    assert found["half"].id == "environment_unfinished"
    assert found["gone"].id == "environment_broken"
    assert found["gone"].command == "./ew setup --engine cuda-trt --env gone"


def test_an_invalid_config_and_a_missing_package_are_found(ew_home: Path) -> None:
    config = ew_home / "deploy" / "config.json"
    config.parent.mkdir()
    config.write_text('{"models": {"m": {"engine": "cpu", "model_path": "nowhere"}}}')
    assert ids(service.check_project()) == ["package_unusable"]
    config.write_text('{"modles": {}}')
    (finding,) = service.check_project()
    assert finding.id == "config_invalid"
    assert "models" in finding.evidence


def test_a_half_filled_repository_is_found_by_its_rule(ew_home: Path) -> None:
    assert ids(service.check_repository()) == []
    config = ew_home / "model_repository" / "m" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    config.write_text('name: "m"\nbackend: "${triton_backend}"\nmax_batch_size: 4\n')
    findings = list(service.check_repository())
    assert {finding.id for finding in findings} == {"repository_lint"}
    assert has_errors(findings)
    assert any(finding.where == "m/config.pbtxt:2" for finding in findings)


def test_a_service_of_an_earlier_boot_is_stale(ew_home: Path) -> None:
    servers = (Server("x-1", "cpu", ("m",), TritonPorts(), 0.0),)
    record = Service("x", "ready", "another boot", 0.0, "127.0.0.1", 8080, "k", servers)
    save(record)
    assert ids(service.check_service()) == ["service_stale"]
    save(record.with_changes(boot_id=boot_id()))
    assert ids(service.check_service()) == ["service_stale"]


def test_an_engine_that_ended_is_named_with_what_brings_it_back(
    ew_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [
        {"engine": "cpu", "env": None, "models": ["a"], "state": "ready"},
        {"engine": "cuda-vllm", "env": "ew-vllm", "models": ["b"], "state": "ended"},
    ]
    models = [{"model": "a", "state": "READY"}, {"model": "b", "state": "UNREACHABLE"}]
    seen = {"state": "degraded", "engines": engines, "models": models, "proxy_ready": True, "url": ""}
    monkeypatch.setattr("runtime.status.status", lambda: seen)
    first, second = service.check_service()
    assert (first.id, first.command) == ("service_broken", "./ew restart --engine cuda-vllm --env ew-vllm")
    assert (second.id, second.where) == ("model_not_ready", "b")


def test_open_key_files_are_errors(ew_home: Path) -> None:
    key = ew_home / "run" / "keys.json"
    key.parent.mkdir()
    key.write_text("{}")
    key.chmod(0o644)
    assert "key_file_open" in ids(service.check_service())
    key.chmod(0o600)
    assert "key_file_open" not in ids(service.check_service())


def test_logs_of_the_last_run_are_explained(ew_home: Path) -> None:
    (ew_home / "logs").mkdir()
    (ew_home / "logs" / "worker.log").write_text("OSError: [Errno 28] No space left on device\n")
    assert "disk_full" in ids(service.check_logs())


def test_a_log_that_cannot_be_read_is_a_finding_and_the_others_are_explained(ew_home: Path) -> None:
    (ew_home / "logs").mkdir()
    (ew_home / "logs" / "triton.log").symlink_to("/proc/self/mem")  # no user can read its beginning
    (ew_home / "logs" / "worker.log").write_text("OSError: [Errno 28] No space left on device\n")
    found = {finding.id: finding for finding in service.check_logs()}
    assert set(found) == {"log_unreadable", "disk_full"}
    assert found["log_unreadable"].where == str(ew_home / "logs" / "triton.log")


def test_an_unloaded_model_is_no_error(ew_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {
        "state": "unloaded",
        "engines": [],
        "models": [{"model": "a", "state": "UNLOADED"}],
        "proxy_ready": False,
        "url": "",
    }
    monkeypatch.setattr("runtime.status.status", lambda: seen)
    (finding,) = service.check_service()
    assert (finding.id, finding.severity) == ("model_unloaded", "info")
    assert finding.command == "./ew start --model a"


def test_a_cause_in_one_log_explains_the_others(ew_home: Path) -> None:
    (ew_home / "logs").mkdir()
    (ew_home / "logs" / "triton.log").write_text(
        "E0101 an error of its own\nerror: creating server: Internal - failed to load all models\n"
    )
    (ew_home / "logs" / "worker.log").write_text("ModuleNotFoundError: No module named 'openvino'\n")
    found = {finding.id: finding.severity for finding in service.check_logs()}
    assert found == {"python_missing_module": "error", "model_load_failed": "info"}


def test_a_failed_start_is_explained_by_its_cause(ew_home: Path) -> None:
    (ew_home / "logs").mkdir()
    (ew_home / "logs" / "worker.log").write_text("The cpu engine did not start: see above\n")
    assert diagnose({"worker": logs.tail("worker", 99), "triton": logs.tail("triton", 99)}) is None
    (ew_home / "logs" / "triton.log").write_text(
        "E0101 failed to load 'm' version 1: x\nERROR: Cuda Runtime (out of memory)\n"
    )
    known = diagnose({"worker": logs.tail("worker", 99), "triton": logs.tail("triton", 99)})
    assert known is not None
    assert known.id == "cuda_oom_engine"


def test_the_pages_of_findings_are_fresh() -> None:
    pages = make_doctor_docs.pages()
    stale = [path.name for path, text in pages.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python scripts/make_doctor_docs.py"


def test_an_index_out_of_reach_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setattr(network, "hub_url", lambda: "")
    (finding,) = network.check_network()
    assert finding.id == "index_unreachable"
    assert "secret" not in finding.evidence
    assert "127.0.0.1:9/simple" in finding.evidence


def test_the_whole_examination_runs_anywhere(ew_home: Path) -> None:
    report = examine(online=False)
    known = set(CATALOG)
    assert {finding.id for finding in report.findings} <= known
    assert json.loads(json.dumps(report.as_dict()))["facts"]["service"] == "stopped"


def test_the_worst_comes_first() -> None:
    findings = [CATALOG[name].found() for name in ("gpu_none", "disk_low", "config_invalid")]
    assert ids(in_order(findings)) == ["config_invalid", "disk_low", "gpu_none"]
    assert has_errors(findings)
    assert not has_errors(findings[:2])


@pytest.mark.parametrize(
    "text",
    [
        f'"X-API-Key": "{KEY}"',
        f"X-API-Key: {KEY}",
        f"found {KEY} in the request",
        "HF_TOKEN=hf_abcdefghijklmnopqrstuv",
        "Authorization: Bearer abcdef1234567890",
        "password = hunter2secret",
        "https://user:pa55word@mirror.example/simple",
        '"aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG"',
        "key sk-proj-abcdefghijklmnop1234",
        "nvapi-abcdefghijklmnop1234",
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_secrets_are_removed(text: str) -> None:
    cleaned = redact(text)
    assert HIDDEN in cleaned
    secrets = (KEY, "hf_abc", "abcdef12", "hunter2", "pa55word", "wJalr", "proj-abc", "nvapi-abc", "\nabc\n")
    assert not [secret for secret in secrets if secret in cleaned]


@pytest.mark.parametrize(
    "text",
    [
        'key: "tokenizer_dir" value: { string_value: "/models/qwen" }',
        '"max_tokens_in_paged_kv_cache": 2048000',
        '"key_file": "/srv/ew/run/api_key"',
        "promptTokens: 1234567",
        "eos_token_id: 1512345",
    ],
)
def test_settings_are_kept(text: str) -> None:
    assert redact(text) == text


def test_a_bundle_holds_no_key_and_only_its_owner_reads_it(ew_home: Path) -> None:
    for name, text in {
        "run/api_key": KEY,
        "run/keys.json": KEY,
        "deploy/config.json": '{"models": {}}',
        "logs/proxy.log": f"X-API-Key: {KEY}\nAuthorization: Bearer {KEY}\n",
        "logs/triton.log.1": "older\n",
        "model_repository/m/config.pbtxt": 'backend: "tensorrtllm"\n',
        "model_repository/m/1/tokenizer/tokenizer.json": "{}",
    }.items():
        path = ew_home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    target = ew_home / "report.tar.gz"
    write_bundle(Report((), {"seen": nvidia.inspect().problem}), target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as archive:
        names = {member.name.removeprefix("ew-bundle/") for member in archive}
        texts = [extracted.read() for member in archive if (extracted := archive.extractfile(member))]
    assert names == {
        "report.json",
        "deploy/config.json",
        "logs/proxy.log",
        "logs/triton.log.1",
        "model_repository/m/config.pbtxt",
    }
    assert not [text for text in texts if KEY.encode() in text]


def test_a_bundle_says_which_log_could_not_be_read(ew_home: Path) -> None:
    (ew_home / "logs").mkdir()
    (ew_home / "logs" / "triton.log").symlink_to("/proc/self/mem")  # no user can read its beginning
    target = ew_home / "report.tar.gz"
    assert "logs/triton.log" in write_bundle(Report((), {}), target)
    with tarfile.open(target) as archive:
        extracted = archive.extractfile("ew-bundle/logs/triton.log")
        assert extracted is not None
        assert b"Errno" in extracted.read()
