"""The whole conversion as a function: what lands on disk, what is reused, what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from builder.convert import convert
from builder.package import load_package
from common.errors import CheckpointError, EwError, PackageError, ResourceError, UsageError
from common.tensors import TensorFile
from tests.builder.golden import GOLDEN, described
from tests.builder.made import TOKENIZER_FILES, make_source, manifest, package, request, run


def test_package_holds_the_golden_checkpoint(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", tp_size=2)
    expected = json.loads((GOLDEN / "llama-sharded" / "tp2pp1" / "tensors.json").read_text())
    assert {rank: described(result.folder / "checkpoint" / rank) for rank in expected} == expected
    assert result.action == "converted"
    package(result).verify()


def test_tokenizer_folder_has_no_code(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out")
    names = sorted(path.name for path in (result.folder / "tokenizer").iterdir())
    assert names == sorted(TOKENIZER_FILES)


def test_manifest_lists_every_file_with_its_digest(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", max_batch_size=8)
    on_disk = {
        path.relative_to(result.folder).as_posix()
        for part in ("checkpoint", "tokenizer")
        for path in (result.folder / part).rglob("*")
    }
    made = manifest(result)
    assert set(made.files) == on_disk
    assert made.sizes.max_batch_size == 8
    assert made.model.reasons["family"] == "architectures[0] is LlamaForCausalLM"
    assert made.runtime.era == "engine"


def test_same_inputs_are_not_converted_twice(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "out")
    before = (first.folder / "ew.json").read_bytes()
    again = run(source, tmp_path / "out")
    assert again.action == "reused"
    assert (again.folder / "ew.json").read_bytes() == before


def test_equal_package_elsewhere_is_linked(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "one")
    second = run(source, tmp_path / "two")
    assert second.action == "linked"
    name = "checkpoint/rank0.safetensors"
    assert (first.folder / name).samefile(second.folder / name)
    package(second).verify()


def test_copied_source_is_recognised_byte_by_byte(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "one")
    copy = Path(shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copy))
    assert run(copy, tmp_path / "two").action == "linked"


def test_one_changed_byte_between_the_samples_is_a_miss(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.inspect.SAMPLES", 1)
    first = run(source, tmp_path / "one")
    copy = Path(shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copy))
    shard = copy / "model-00001-of-00003.safetensors"
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    second = run(copy, tmp_path / "two")
    assert manifest(second).keys == manifest(first).keys
    assert second.action == "converted"


@pytest.mark.parametrize(
    "change", [{"dtype": "float16"}, {"tp_size": 2}, {"pp_size": 2}, {"use_parallel_embedding": True}]
)
def test_other_options_are_a_miss(source: Path, tmp_path: Path, change: dict[str, object]) -> None:
    run(source, tmp_path / "one")
    assert run(source, tmp_path / "two", **change).action == "converted"


def test_package_touched_after_its_manifest_is_no_cache_hit(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "one")
    rank = first.folder / "checkpoint" / "rank0.safetensors"
    content = bytearray(rank.read_bytes())
    content[-1] ^= 1
    rank.write_bytes(bytes(content))
    assert run(source, tmp_path / "two").action == "converted"
    with pytest.raises(PackageError, match="damaged"):
        run(source, tmp_path / "one")


def test_changed_source_converts_again_in_place(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "out")
    for path in source.glob("*.safetensors"):
        os.utime(path)
    again = run(source, tmp_path / "out")
    assert again.action == "converted"
    assert manifest(again).files == manifest(first).files


def test_another_package_needs_force(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    with pytest.raises(PackageError) as caught:
        run(source, tmp_path / "out", tp_size=2)
    assert caught.value.code == "output_holds_other_package"
    result = run(source, tmp_path / "out", tp_size=2, force=True)
    assert result.action == "converted"
    package(result).verify()


def test_foreign_folder_is_left_alone(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(PackageError) as caught:
            run(source, output, force=force)
        assert caught.value.code == "output_not_empty"
    assert (output / "thesis.txt").read_text() == "years of work"


def test_new_sizes_only_rewrite_the_manifest(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "out")
    rank = first.folder / "checkpoint" / "rank0.safetensors"
    written = rank.stat().st_mtime_ns
    again = run(source, tmp_path / "out", max_input_len=128)
    assert again.action == "reused"
    assert manifest(again).sizes.max_input_len == 128
    assert manifest(again).created == manifest(first).created
    assert rank.stat().st_mtime_ns == written


def test_two_conversions_at_once_end_in_one_good_package(source: Path, tmp_path: Path) -> None:
    results: list[str] = []

    def work() -> None:
        results.append(run(source, tmp_path / "out").action)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["converted", "reused", "reused", "reused"]
    load_package(tmp_path / "out").verify()


def test_plan_stage_writes_nothing(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", stage="plan")
    assert result.manifest is None
    assert not (tmp_path / "out").exists()


def test_pending_engine_says_the_command(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", stage="engine")
    engine = manifest(result).engine
    assert engine.state == "pending"
    assert engine.reason == "trtllm-build is not installed here"
    assert engine.command[:2] == ["docker", "run"]
    assert "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3" in engine.command
    assert any("trtllm-build is not installed" in warning for warning in result.warnings)


def test_interrupt_can_be_resumed(source: Path, tmp_path: Path) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "converting" and done:
            raise KeyboardInterrupt

    with pytest.raises(EwError) as caught:
        convert(request(source, tmp_path / "out"), progress=interrupt)
    assert (caught.value.exit_code, caught.value.code) == (130, "interrupted")
    with pytest.raises(PackageError) as no_package:
        load_package(tmp_path / "out")
    assert "did not finish" in no_package.value.why
    result = run(source, tmp_path / "out")
    assert result.action == "resumed"
    package(result).verify()


def test_full_disk_is_foreseen(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("builder.convert.shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError) as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "no_space"
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_full_disk_while_sealing_leaves_no_package(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("builder.seal.write_manifest", full)
        with pytest.raises(ResourceError) as caught:
            run(source, tmp_path / "out")
    assert caught.value.code == "disk_full"
    with pytest.raises(PackageError):
        load_package(tmp_path / "out")
    assert run(source, tmp_path / "out").action == "resumed"


def test_no_permission_names_the_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError) as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "permission"
    assert str(tmp_path / "out") in caught.value.what


def test_output_that_is_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ResourceError) as caught:
        run(source, tmp_path / "out")
    assert caught.value.code == "output_is_file"


def test_tp_that_does_not_divide(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        run(source, tmp_path / "out", tp_size=3)
    assert "8 attention heads" in caught.value.why
    assert not (tmp_path / "out").exists()


def test_sizes_must_be_positive(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-input-len must be at least 1"):
        run(source, tmp_path / "out", max_input_len=0)


def test_pytorch_runtime_writes_llm_arguments(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", stage="engine", runtime="pytorch", tp_size=2)
    arguments = json.loads((result.folder / "llm_args.json").read_text())
    assert arguments["model"] == str(source)
    assert arguments["tensor_parallel_size"] == 2
    assert arguments["max_seq_len"] == 6144
    assert not (result.folder / "checkpoint").exists()
    package(result).verify()


def test_pytorch_package_follows_new_sizes(source: Path, tmp_path: Path) -> None:
    options = {"stage": "engine", "runtime": "pytorch"}
    first = run(source, tmp_path / "out", max_batch_size=64, **options)
    again = run(source, tmp_path / "out", max_batch_size=32, **options)
    assert json.loads((again.folder / "llm_args.json").read_text())["max_batch_size"] == 32
    assert manifest(first).files["llm_args.json"].bytes == manifest(again).files["llm_args.json"].bytes
    package(again).verify()
    more = run(source, tmp_path / "out", max_batch_size=32, extra=("--stream_interval", "2"), **options)
    assert json.loads((more.folder / "llm_args.json").read_text())["stream_interval"] == 2
    package(more).verify()


def test_missing_tokenizer_is_said(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").unlink()
    assert any("no tokenizer.json" in warning for warning in run(source, tmp_path / "out").warnings)


def test_links_fall_back_to_copies(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(*arguments: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    first = run(source, tmp_path / "one")
    monkeypatch.setattr(os, "link", other_disk)
    second = run(source, tmp_path / "two")
    name = "checkpoint/rank0.safetensors"
    assert second.action == "linked"
    assert not (first.folder / name).samefile(second.folder / name)
    package(second).verify()


def test_same_conversion_to_two_places_at_once_converts_once(source: Path, tmp_path: Path) -> None:
    actions: list[str] = []

    def work(name: str) -> None:
        actions.append(run(source, tmp_path / name).action)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(actions) == ["converted", "linked", "linked"]


def test_unwritable_index_does_not_stop_a_conversion(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(source, tmp_path / "out", cache=tmp_path / "file" / "cache")
    assert result.action == "converted"


def test_a_sliding_window_is_said(tmp_path: Path) -> None:
    source = make_source(tmp_path / "hf", "mistral")
    result = run(source, tmp_path / "out")
    assert any('"max_attention_window_size": "4096"' in warning for warning in result.warnings)
    short = run(source, tmp_path / "short", max_input_len=2048, max_output_len=2048)
    assert not any("sliding_window" in warning for warning in short.warnings)


def test_weights_too_large_for_the_type_are_counted(tmp_path: Path) -> None:
    source = make_source(tmp_path / "hf", "mistral")
    path = source / "model.safetensors"
    name, info = next(iter(TensorFile(path).tensors.items()))
    content = bytearray(path.read_bytes())
    huge = {"F32": np.float32(1e9).tobytes(), "BF16": b"\x80\x7e"}[info.dtype]
    content[info.offset : info.offset + len(huge)] = huge
    path.write_bytes(bytes(content))
    warnings = run(source, tmp_path / "out", dtype="float16").warnings
    assert any(
        f"1 weights are too large for float16 and became infinite (first in {name})" in w for w in warnings
    )
    assert not any("infinite" in warning for warning in run(source, tmp_path / "wide").warnings)
