"""Every kind of bad input to convert-trt: its message, its code, its exit code, and nothing written."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.ew import ew

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def _edit(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": [')


def _list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _missing_shard(folder: Path) -> None:
    (folder / SHARD).unlink()


def _truncated(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[: len(content) // 2])


def _wrong_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.layers.99.mlp.up_proj.weight"] = SHARD
    (folder / INDEX).write_text(json.dumps(index))


def _broken_index(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def _missing_tensor(folder: Path) -> None:
    _edit(folder / "config.json", num_hidden_layers=5)


def _wrong_shape(folder: Path) -> None:
    _edit(folder / "config.json", intermediate_size=160)


def _unknown_architecture(folder: Path) -> None:
    _edit(folder / "config.json", architectures=["LlamoForCausalLM"])


def _no_architecture(folder: Path) -> None:
    _edit(folder / "config.json", architectures=None)


def _trtllm_checkpoint(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": "LlamaForCausalLM", "mapping": {}}))


def _engine(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"pretrained_config": {}, "build_config": {}}))


def _no_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()


def _pickled(folder: Path) -> None:
    _no_weights(folder)
    (folder / INDEX).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def _lfs(folder: Path) -> None:
    (folder / SHARD).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _prequantized(folder: Path) -> None:
    _edit(folder / "config.json", quantization_config={"quant_method": "awq", "bits": 4})


def _quant_config(folder: Path) -> None:
    (folder / "hf_quant_config.json").write_text("not json")


CASES: list[tuple[Callable[[Path], None], list[str], str, int, str]] = [
    (_no_config, [], "not_a_checkpoint", 4, "is not a Hugging Face checkpoint"),
    (_adapter, [], "source_is_adapter", 4, "LoRA adapter"),
    (_broken_config, [], "config_unreadable", 4, "not readable JSON"),
    (_list_config, [], "config_unreadable", 4, "not a JSON object"),
    (_missing_shard, [], "shard_missing", 4, SHARD),
    (_truncated, [], "safetensors_broken", 4, SHARD),
    (_wrong_index, [], "index_mismatch", 4, "model.layers.99.mlp.up_proj.weight"),
    (_broken_index, [], "index_broken", 4, INDEX),
    (_missing_tensor, [], "weights_missing", 4, "model.layers.4"),
    (_wrong_shape, [], "shape_mismatch", 4, "160"),
    (_unknown_architecture, [], "unsupported_model", 4, "nearest supported one is LlamaForCausalLM"),
    (_no_architecture, [], "config_field_missing", 4, "architectures"),
    (_trtllm_checkpoint, [], "source_is_trtllm_checkpoint", 4, "trtllm-build --checkpoint_dir"),
    (_engine, [], "source_is_engine", 4, "TensorRT-LLM engine"),
    (_no_weights, [], "weights_missing", 4, "holds no weights"),
    (_pickled, [], "pickle_refused", 4, "--allow-pickle"),
    (_lfs, [], "git_lfs_pointer", 4, "git lfs pull"),
    (_prequantized, ["--runtime", "engine"], "prequantized", 4, "W4A16_AWQ"),
    (_quant_config, [], "quant_config_unreadable", 4, "ModelOpt"),
]
OPTIONS: list[tuple[list[str], str, int, str]] = [
    (["--tp-size", "3"], "layout", 4, "8 attention heads are not divisible by tp_size 3"),
    (["--tp-size", "0"], "bad_size", 2, "--tp-size must be at least 1"),
    (["--pp-size", "9"], "layout", 4, "pp_size"),
    (["--model-type", "baichuan"], "model_type", 2, "contradicts"),
    (["--model-type", "llamma"], "model_type", 2, "Unknown model type"),
    (["--revision", "main"], "revision_of_path", 2, "local folder"),
    (["--max-batchsize", "4"], "unknown_option", 2, "--max-batch-size"),
    (["--gemm_plugn", "auto"], "unknown_option", 2, "--gemm_plugin"),
    (["--gemm_plugin", "fp9"], "bad_option_value", 2, "fp8"),
    (["--context_fmha"], "bad_option_value", 2, "needs a value"),
    (["--auto_parallel", "2"], "removed_option", 2, "removed"),
    (["--max_seq_len", "99"], "owned_option", 2, "--max-input-len plus --max-output-len"),
    (["--quantization", "int8"], "weight_only_refused", 2, "native library"),
    (["--quantization", "fp7"], "unknown_quantization", 2, "fp8"),
    (["--runtime", "engine", "--trtllm-version", "1.4.0rc1"], "runtime_contradiction", 2, "1.2.1"),
    (["--trtllm-version", "newest"], "bad_version", 2, "1.2.1"),
    (["--gpu", "L4OS"], "unknown_gpu", 2, "L40S"),
    (["--gpu-memory", "lots"], "bad_size", 2, "24GiB"),
    (["--gpu-memory", "80"], "bad_size", 2, "80GiB"),
    (["--gpu", "V100", "--stage", "engine"], "plan_does_not_fit", 8, "0.16"),
    (
        ["--gpu", "T4", "--dtype", "bfloat16"],
        "plan_does_not_fit",
        8,
        "has compute capability 7.5; bfloat16 needs 8.0",
    ),
    (["--gpu-memory", "1GiB"], "plan_does_not_fit", 8, "exceed"),
]


@pytest.mark.parametrize(("spoil", "arguments", "code", "exit_code", "text"), CASES)
def test_bad_source(
    spoil: Callable[[Path], None],
    arguments: list[str],
    code: str,
    exit_code: int,
    text: str,
    source: Path,
    tmp_path: Path,
) -> None:
    spoil(source)
    _refused(["--model", str(source), *arguments], code, exit_code, text, tmp_path / "out")


@pytest.mark.parametrize(("arguments", "code", "exit_code", "text"), OPTIONS)
def test_bad_options(
    arguments: list[str], code: str, exit_code: int, text: str, source: Path, tmp_path: Path
) -> None:
    _refused(["--model", str(source), *arguments], code, exit_code, text, tmp_path / "out")


def _refused(arguments: list[str], code: str, exit_code: int, text: str, output: Path) -> None:
    answer = ew("convert-trt", *arguments, "--output", output, "--json")
    error = answer.document["error"]
    assert (error["code"], answer.code) == (code, exit_code)
    assert text in " ".join(error.values())
    assert not output.exists()


def test_missing_folder(tmp_path: Path) -> None:
    _refused(
        ["--model", str(tmp_path / "nowhere")], "source_missing", 4, "There is no folder", tmp_path / "out"
    )


def test_file_instead_of_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    _refused(["--model", str(path)], "source_not_a_folder", 4, "llama.cpp", tmp_path / "out")


def test_package_as_source(source: Path, tmp_path: Path) -> None:
    made = ew("convert-trt", "--model", source, "--output", tmp_path / "one", "--stage", "checkpoint")
    assert made.code == 0
    _refused(
        ["--model", str(tmp_path / "one")], "source_is_package", 4, "already a package", tmp_path / "out"
    )


def test_hugging_face_folder_as_package(source: Path) -> None:
    answer = ew("package", "verify", source, "--json")
    assert answer.document["error"]["code"] == "not_a_package"
    assert "has not been converted" in answer.document["error"]["why"]
    assert answer.code == 4


def test_bad_input_keeps_the_old_package(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ew("convert-trt", "--model", source, "--output", output, "--stage", "checkpoint")
    spoiled = Path(shutil.copytree(source, tmp_path / "spoiled"))
    _truncated(spoiled)
    answer = ew("convert-trt", "--model", spoiled, "--output", output, "--stage", "checkpoint", "--force")
    assert answer.code == 4
    assert ew("package", "verify", output).code == 0


def test_errors_for_people_have_three_lines(source: Path, tmp_path: Path) -> None:
    answer = ew("convert-trt", "--model", source, "--output", tmp_path / "out", "--tp-size", "3")
    lines = answer.err.strip().splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["Error", "why", "next"]
    assert answer.out == ""
