"""The engine stage against a stand-in for trtllm-build (contract-checked, see fake_trtllm_build.py)."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder import engine_env
from builder.engine_build import explain
from builder.package import ServerVersions, load_package
from common.errors import EwError
from common.paths import SOURCE_ROOT
from tests.builder.made import manifest, package, run

FAKE = Path(__file__).with_name("fake_trtllm_build.py")
VERSION_ANSWER = "import sys\nif sys.argv[1:2] == ['-c']: print('1.2.1'); print('10.14.1.48'); sys.exit()\n"


@dataclass(frozen=True)
class GpuMachine:
    """A folder of programs that answer like a machine with one GPU and TensorRT-LLM."""

    folder: Path
    record: Path

    @property
    def builds(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]

    def set_gpu(self, name: str, memory_mib: int, capability: str, count: int = 1) -> None:
        lines = "\n".join(f"{name}, {memory_mib}, {capability}" for _ in range(count))
        _program(self.folder / "nvidia-smi", f"print({lines!r})")


def _program(path: Path, code: str) -> None:
    path.write_text(f"#!{sys.executable}\n{code}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GpuMachine:
    folder = tmp_path / "gpu-bin"
    folder.mkdir()
    made = GpuMachine(folder, tmp_path / "builds.jsonl")
    made.record.touch()
    python = folder / "python3"
    root = f"sys.path.insert(0, {str(SOURCE_ROOT)!r})"
    _program(
        python,
        f"{VERSION_ANSWER}import runpy\n{root}\nsys.argv = sys.argv[1:]\n"
        f"runpy.run_path({str(FAKE)!r}, run_name='__main__')",
    )
    (folder / "trtllm-build").write_text(f"#!{python}\n", encoding="utf-8")
    (folder / "trtllm-build").chmod(0o755)
    made.set_gpu("NVIDIA L40S", 46068, "8.9")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("FAKE_BUILD_RECORD", str(made.record))
    monkeypatch.setenv("FAKE_BUILD_VERSION", "1.2.1")
    engine_env._versions.cache_clear()
    return made


def _build(source: Path, output: Path, **options: Any) -> Any:
    return run(source, output, stage="engine", **options)


def test_engine_is_built_checked_and_described(machine: GpuMachine, source: Path, tmp_path: Path) -> None:
    result = _build(
        source, tmp_path / "out", tp_size=2, max_batch_size=8, max_input_len=100, max_output_len=28
    )
    engine = manifest(result).engine
    assert (engine.state, engine.tensorrt_llm, engine.tensorrt) == ("built", "1.2.1", "10.14.1.48")
    assert (engine.gpu, engine.compute_capability) == ("NVIDIA L40S", "8.9")
    assert {"engine/config.json", "engine/rank0.engine", "engine/rank1.engine", "engine/build.log"} <= set(
        manifest(result).files
    )
    package(result).verify()
    assert "at hand" in manifest(result).runtime.reason


def test_build_command_follows_the_contract(machine: GpuMachine, source: Path, tmp_path: Path) -> None:
    _build(source, tmp_path / "out", max_batch_size=8, max_input_len=100, max_output_len=28)
    (options,) = machine.builds
    assert options["max_seq_len"] == "128"
    assert options["workers"] == "1"
    assert options["gemm_plugin"] == "auto"
    assert "max_output_len" not in options
    assert "tp_size" not in options


def test_workers_never_exceed_gpus_or_ranks(machine: GpuMachine, source: Path, tmp_path: Path) -> None:
    machine.set_gpu("NVIDIA L40S", 46068, "8.9", count=8)
    _build(source, tmp_path / "out", tp_size=2)
    assert machine.builds[0]["workers"] == "2"


def test_same_engine_is_not_built_twice(machine: GpuMachine, source: Path, tmp_path: Path) -> None:
    _build(source, tmp_path / "out")
    assert _build(source, tmp_path / "out").action == "reused"
    assert len(machine.builds) == 1


def test_equal_engine_elsewhere_is_linked(machine: GpuMachine, source: Path, tmp_path: Path) -> None:
    _build(source, tmp_path / "one")
    second = _build(source, tmp_path / "two")
    assert len(machine.builds) == 1
    assert manifest(second).engine.state == "built"
    package(second).verify()


@pytest.mark.parametrize("change", [{"max_batch_size": 4}, {"extra": ("--gemm_plugin", "disable")}])
def test_other_build_options_build_again(
    machine: GpuMachine, source: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    _build(source, tmp_path / "out")
    result = _build(source, tmp_path / "out", **change)
    assert (result.action, len(machine.builds)) == ("reused", 2)
    assert machine.builds[1]["input_timing_cache"].endswith("engine/model.cache")
    package(result).verify()


def test_another_gpu_builds_again(machine: GpuMachine, source: Path, tmp_path: Path) -> None:
    _build(source, tmp_path / "out")
    machine.set_gpu("NVIDIA H100 80GB HBM3", 81559, "9.0")
    result = _build(source, tmp_path / "out")
    assert (manifest(result).engine.compute_capability, len(machine.builds)) == ("9.0", 2)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("KeyError: 'architecture'", "is a Hugging Face folder"),
        ("Error Code 1: Cuda Runtime (out of memory)", "memory"),
        ("something nobody has seen", "something nobody has seen"),
    ],
)
def test_failed_build_is_explained_and_keeps_the_checkpoint(
    line: str, text: str, machine: GpuMachine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BUILD_FAILURE", line)
    with pytest.raises(EwError) as caught:
        _build(source, tmp_path / "out")
    assert (caught.value.code, caught.value.exit_code) == ("engine_build_failed", 5)
    assert text in caught.value.why
    log = tmp_path / "out" / ".ew" / "build.log"
    assert line in log.read_text()
    monkeypatch.delenv("FAKE_BUILD_FAILURE")
    result = _build(source, tmp_path / "out")
    assert (result.action, manifest(result).engine.state) == ("reused", "built")


def test_asking_for_another_version_than_the_builders(
    machine: GpuMachine, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(EwError) as caught:
        _build(source, tmp_path / "out", trtllm_version="1.1.0")
    assert caught.value.code == "builder_version"
    assert "tritonserver:26.02-trtllm-python-py3" in caught.value.hint


def test_engine_built_elsewhere_is_taken_up(source: Path, tmp_path: Path) -> None:
    pending = _build(source, tmp_path / "out")
    _fill_engine(pending.folder)
    result = _build(source, tmp_path / "out")
    engine = manifest(result).engine
    assert (engine.state, engine.gpu, engine.compute_capability) == ("built", "NVIDIA A10", "8.6")
    assert engine.tensorrt == "10.14.1.48"
    package(result).verify()


def test_engine_of_other_sizes_is_not_taken_up(source: Path, tmp_path: Path) -> None:
    pending = _build(source, tmp_path / "out")
    _fill_engine(pending.folder, max_batch_size=63)
    with pytest.raises(EwError) as caught:
        _build(source, tmp_path / "out")
    assert caught.value.code == "engine_mismatch"
    assert "max_batch_size is 63, planned was 64" in caught.value.why


def _fill_engine(folder: Path, **sizes: int) -> None:
    """What the printed docker command leaves behind."""
    engine = folder / "engine"
    engine.mkdir()
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    build = {"max_batch_size": 64, "max_input_len": 4096, "max_seq_len": 6144} | sizes
    document = {"version": "1.2.1", "pretrained_config": config, "build_config": build}
    (engine / "config.json").write_text(json.dumps(document))
    (engine / "rank0.engine").write_bytes(b"engine")
    (engine / "gpu.csv").write_text("NVIDIA A10, 8.6\n")


@pytest.mark.parametrize("step", ["builder.workspace.Workspace.place", "builder.convert.seal"])
def test_exchange_of_an_engine_can_be_cut_off(
    step: str, machine: GpuMachine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SystemExit stands for the kill: nothing after it runs."""
    _build(source, tmp_path / "out")

    def die(*arguments: object, **options: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(step, die)
        with pytest.raises(SystemExit):
            _build(source, tmp_path / "out", max_batch_size=4)
    half_way = load_package(tmp_path / "out")
    assert half_way.manifest.engine.state == "pending"
    result = _build(source, tmp_path / "out", max_batch_size=4)
    assert (manifest(result).engine.state, manifest(result).sizes.max_batch_size) == ("built", 4)
    package(result).verify()


def test_quantization_is_made_in_the_container(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data" / "cnn_dailymail"
    data.mkdir(parents=True)
    result = _build(source, tmp_path / "out", quantization="fp8", calibration=data)
    command = manifest(result).engine.command
    script = command[-1]
    assert f"{data}:/calibration/cnn_dailymail:ro" in command
    assert f"{source}:/source:ro" in command
    quantize, build = script.split(" && ")[:2]
    assert "--qformat fp8 --kv_cache_dtype fp8" in quantize
    assert "--calib_dataset /calibration/cnn_dailymail" in quantize
    assert "--export_format tensorrt_llm" in quantize
    assert "--gemm_plugin" not in shlex.split(build)
    assert not (result.folder / "checkpoint").exists()


def test_pytorch_era_loads_what_the_container_quantized(source: Path, tmp_path: Path) -> None:
    options = {"runtime": "pytorch", "quantization": "nvfp4"}
    pending = _build(source, tmp_path / "out", **options)
    quantized = pending.folder / "quantized"
    assert manifest(pending).engine.state == "pending"
    assert "--export_format hf" in manifest(pending).engine.command[-1]
    assert "trtllm-build" not in manifest(pending).engine.command[-1]
    assert json.loads((pending.folder / "llm_args.json").read_text())["model"] == str(quantized)
    quantized.mkdir()
    (quantized / "hf_quant_config.json").write_text("{}")
    result = _build(source, tmp_path / "out", **options)
    assert manifest(result).engine.state == "none"
    package(result).verify()


def _prequantize(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (source / "config.json").write_text(json.dumps(config))


def _modelopt(source: Path) -> None:
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    (source / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": quantization})
    )


@pytest.mark.parametrize(("quantize", "algorithm"), [(_prequantize, "W4A16_AWQ"), (_modelopt, "FP8")])
def test_quantized_checkpoints_go_to_the_pytorch_runtime(
    quantize: Callable[[Path], None], algorithm: str, source: Path, tmp_path: Path
) -> None:
    quantize(source)
    made = manifest(_build(source, tmp_path / "out", gpu="L40S"))
    assert made.runtime.era == "pytorch"
    assert "already quantized" in made.runtime.reason
    assert made.model.quantization == algorithm
    assert made.plan["weights_per_rank"] == sum(file.bytes for file in made.source.files)


def test_quantized_checkpoint_is_not_quantized_again(source: Path, tmp_path: Path) -> None:
    _modelopt(source)
    with pytest.raises(EwError) as caught:
        _build(source, tmp_path / "out", quantization="fp8")
    assert caught.value.code == "already_quantized"


def test_calibration_folder_needs_a_name_modelopt_knows(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "news"
    data.mkdir()
    with pytest.raises(EwError) as caught:
        _build(source, tmp_path / "out", quantization="fp8", calibration=data)
    assert caught.value.code == "calibration_name"


def test_gate_refuses_what_a_server_cannot_load(machine: GpuMachine, source: Path, tmp_path: Path) -> None:
    made = package(_build(source, tmp_path / "out"))
    made.check_loadable(ServerVersions("1.2.1", "10.14.1.48"))
    with pytest.raises(EwError) as version:
        made.check_loadable(ServerVersions("1.1.0"))
    assert version.value.code == "engine_version"
    assert "26.07-trtllm-python-py3" in version.value.hint
    with pytest.raises(EwError) as cliff:
        made.check_loadable(ServerVersions("1.4.0rc1"))
    assert "no engine support" in cliff.value.why


@pytest.mark.parametrize("text", ["[TRT-LLM] [I] all is well", ""])
def test_clean_log_has_no_explanation(text: str) -> None:
    assert explain(text) is None
