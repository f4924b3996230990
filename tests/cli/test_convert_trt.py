"""convert-trt, plan and package as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.convert_trt import default_output
from common.paths import SOURCE_ROOT, home
from tests.builder.golden import CASES, Case, described
from tests.cli.ew import ew

PLAIN = [
    case for case in CASES if case.expected.name in ("tp2pp1", "tp1pp2", "tp1pp1-float16", "tp1pp1-asv1")
]


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_the_documented_command_equals_golden(case: Case, tmp_path: Path) -> None:
    sizes = case.config["mapping"]
    model_type = ["--model-type", case.model_type] if case.model_type else []
    arguments = [
        "--model",
        case.source,
        "--output",
        tmp_path / "out",
        "--stage",
        "checkpoint",
        "--json",
        *model_type,
    ]
    arguments += [
        "--dtype",
        case.config["dtype"],
        "--tp-size",
        sizes["tp_size"],
        "--pp-size",
        sizes["pp_size"],
    ]
    answer = ew("convert-trt", *arguments)
    assert answer.code == 0, answer.out
    checkpoint = tmp_path / "out" / "checkpoint"
    assert {name: described(checkpoint / name) for name in case.tensors} == case.tensors
    assert json.loads((checkpoint / "config.json").read_text()) == case.config


def test_underscores_and_dashes_are_the_same(source: Path, tmp_path: Path) -> None:
    options = ["--max_batch_size", "8", "--tp_size=2", "--gemm-plugin", "float16", "--stage", "engine"]
    answer = ew("convert-trt", "--model", source, "--output", tmp_path / "out", *options, "--json")
    assert answer.code == 0
    command = answer.document["engine_command"][-1]
    assert "--max_batch_size 8" in command
    assert "--gemm_plugin float16" in command


def test_pending_engine_exits_0_and_says_what_finishes_it(source: Path, tmp_path: Path) -> None:
    answer = ew("convert-trt", "--model", source, "--output", tmp_path / "out")
    assert answer.code == 0
    assert "The engine is not built yet: trtllm-build is not installed here" in answer.out
    assert "docker run" in answer.out
    document = ew("convert-trt", "--model", source, "--output", tmp_path / "out", "--json").document
    assert (document["action"], document["engine"]) == ("reused", "pending")


def test_default_output_is_named_after_the_model(source: Path) -> None:
    assert default_output("org/Some Model/") == home().models / "Some-Model"
    answer = ew("convert-trt", "--model", source, "--stage", "checkpoint", "--json")
    assert answer.document["package"] == str(home().models / source.name)


def test_package_verbs(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "models" / "tiny"
    ew("convert-trt", "--model", source, "--output", output, "--stage", "checkpoint")
    assert "is whole" in ew("package", "verify", output).out
    assert "LlamaForCausalLM (llama)" in ew("package", "show", output).out
    (row,) = ew("package", "list", output.parent, "--json").document
    assert (row["package"], row["tp_size"], row["engine"]) == (str(output), 1, "none")
    listed = ew("package", "list", output.parent).out
    assert "float16" in listed
    assert "…" not in listed, "a path is cut"


def test_package_check_names_what_is_missing(source: Path, tmp_path: Path) -> None:
    ew("convert-trt", "--model", source, "--output", tmp_path / "engine")
    pending = ew("package", "check", tmp_path / "engine", "--trtllm-version", "1.2.1", "--json")
    assert (pending.code, pending.document["error"]["code"]) == (4, "engine_pending")
    ew("convert-trt", "--model", source, "--output", tmp_path / "pytorch", "--runtime", "pytorch")
    assert (
        ew("package", "check", tmp_path / "pytorch", "--trtllm-version", "1.4.0rc1", "--gpu", "L40S").code
        == 0
    )
    old = ew("package", "check", tmp_path / "pytorch", "--trtllm-version", "0.21.0", "--json")
    assert old.document["error"]["code"] == "runtime_version"


def test_plan_table_and_document(source: Path) -> None:
    shown = ew("plan", "--model", source, "--gpu", "L40S")
    assert shown.code == 0
    assert "kv bytes per token" in shown.out
    figures = {
        figure["name"]: figure for figure in ew("plan", "--model", source, "--json").document["figures"]
    }
    assert figures["kv_bytes_per_token"]["value"] == 4 * 4 * 8 * 2 * 2
    assert "4 layers x 4 KV heads x 8 x 2 (K, V) x 2 bytes" in figures["kv_bytes_per_token"]["reason"]


def test_a_gpu_that_is_not_known_is_answered_with_options_the_verb_has(source: Path, tmp_path: Path) -> None:
    ew("convert-trt", "--model", source, "--output", tmp_path / "out", "--runtime", "pytorch")
    checked = ew("package", "check", tmp_path / "out", "--trtllm-version", "1.2.1", "--gpu", "L41", "--json")
    hint = checked.document["error"]["hint"]
    assert "'L4'" in hint and "--gpu-memory" not in hint
    planned = ew("plan", "--model", source, "--gpu", "L41", "--json")
    assert "--gpu-memory 24GiB" in planned.document["error"]["hint"]


@pytest.mark.parametrize(("version", "is_told"), [("9.9", True), ("1.2.1", False), ("1.3.0.rc22", False)])
def test_a_version_that_no_table_has_is_said(
    version: str, is_told: bool, source: Path, tmp_path: Path
) -> None:
    options = ["--model", source, "--trtllm-version", version]
    remarks = ew("plan", *options, "--json").document["remarks"]
    assert any("is not in ew's tables" in remark for remark in remarks) is is_told
    made = ew("convert-trt", *options, "--output", tmp_path / "out", "--json").document
    assert any("is not in ew's tables" in warning for warning in made["warnings"]) is is_told


def test_plan_that_does_not_fit_exits_8(source: Path) -> None:
    answer = ew("plan", "--model", source, "--gpu-memory", "1GiB", "--json")
    assert (answer.code, answer.document["fits"]) == (8, False)


def test_plan_needs_only_the_config(source: Path) -> None:
    for path in source.glob("model*"):
        path.unlink()
    assert ew("plan", "--model", source).code == 0


def test_termination_is_an_interrupt(source: Path, tmp_path: Path) -> None:
    """SIGTERM while waiting for the lock of another conversion: exit code 130 and nothing broken."""
    import fcntl

    output = tmp_path / "out"
    (output / ".ew").mkdir(parents=True)
    with (output / ".ew" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = ["convert-trt", "--model", str(source), "--output", str(output), "--stage", "checkpoint"]
        command = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), *arguments]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting for another conversion ...\n"
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Run the same command again" in rest


def test_script_hands_over_to_the_launcher(tmp_path: Path) -> None:
    """With a Python that has nothing, and from another folder; the launcher here only shows what it got."""
    scripts = tmp_path / "checkout" / "scripts"
    scripts.mkdir(parents=True)
    (scripts / "convert_trt.py").write_text((SOURCE_ROOT / "scripts" / "convert_trt.py").read_text())
    (scripts.parent / "ew").write_text("import sys; print(sys.argv[1:])")
    command = [
        sys.executable,
        "-I",
        "-S",
        str(scripts / "convert_trt.py"),
        "--model",
        "a b",
        "--dtype",
        "float16",
    ]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(["convert-trt", "--model", "a b", "--dtype", "float16"])
