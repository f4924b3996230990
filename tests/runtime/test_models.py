"""`--model`: an id of the config or a package folder, and clear words for everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.manifest import (
    EngineInfo,
    Keys,
    Layout,
    Manifest,
    Model,
    RuntimeTarget,
    Sizes,
    Source,
    Tool,
    write_manifest,
)
from builder.package import load_package
from common.config import load_config
from common.errors import ConfigError, EwError, PackageError, UsageError
from runtime.models import entry_for, resolve_models, save_new_entries, set_entry


def make_package(folder: Path, **sizes: int) -> Path:
    """A valid package without files: all that the config entry needs."""
    folder.mkdir(parents=True)
    limits = {"max_batch_size": 8, "max_input_len": 96, "max_output_len": 32, **sizes}
    manifest = Manifest(
        tool=Tool(version="0.1.0"),
        created="2026-01-01T00:00:00Z",
        keys=Keys(checkpoint="0" * 64),
        source=Source(model="x", kind="path", path="x", revision=None, digest="x", files=[]),
        model=Model(architecture="LlamaForCausalLM", family="llama", reasons={}),
        layout=Layout(dtype="bfloat16", tp_size=2, pp_size=1),
        sizes=Sizes(**limits),
        runtime=RuntimeTarget(era="engine", tensorrt_llm="1.2.1", reason="x"),
        plan={},
        engine=EngineInfo(state="none", reason="x"),
        files={},
    )
    write_manifest(folder, manifest)
    return folder


def config_text(home: Path) -> str:
    return (home / "deploy" / "config.json").read_text(encoding="utf-8")


def test_a_package_folder_gets_an_entry_with_its_own_sizes(ew_home: Path) -> None:
    folder = make_package(ew_home / "models" / "tiny")
    config, ids = resolve_models([str(folder)], "cpu")
    assert ids == ("tiny",)
    assert not (ew_home / "deploy").exists()
    save_new_entries(config, ids)
    assert json.loads(config_text(ew_home))["models"]["tiny"] == {
        "engine": "cpu",
        "model_path": "models/tiny",
        "max_batch_size": 8,
        "max_input_len": 96,
        "max_output_len": 32,
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
    }
    assert config.models["tiny"].model_path == "models/tiny"


def test_the_same_package_again_keeps_its_entry(ew_home: Path) -> None:
    folder = make_package(ew_home / "models" / "tiny")
    set_entry("renamed", entry_for(load_package(folder), "cpu"))
    before = config_text(ew_home)
    assert resolve_models([str(folder)], "cpu")[1] == ("renamed",)
    assert resolve_models(["renamed", str(folder)], "cpu")[1] == ("renamed",)
    assert config_text(ew_home) == before


def test_a_package_outside_the_home_folder_is_named_in_full(
    ew_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = make_package(tmp_path_factory.mktemp("elsewhere") / "tiny")
    config, _ = resolve_models([str(folder)], "cpu")
    assert Path(config.models["tiny"].model_path) == folder.resolve()


def test_other_entries_and_their_settings_stay_as_they_are(ew_home: Path) -> None:
    mine = {"engine": "cuda-trt", "model_path": "/big", "max_batch_size": 2}
    (ew_home / "deploy").mkdir()
    (ew_home / "deploy" / "config.json").write_text(json.dumps({"models": {"mine": mine}}))
    save_new_entries(*resolve_models([str(make_package(ew_home / "models" / "tiny"))], "cpu"))
    assert json.loads(config_text(ew_home))["models"]["mine"] == mine
    assert set(load_config(ew_home / "deploy" / "config.json").models) == {"mine", "tiny"}


def test_what_cannot_be_served_is_named(ew_home: Path) -> None:
    tiny = make_package(ew_home / "models" / "tiny")
    (ew_home / "checkpoint").mkdir()
    (ew_home / "checkpoint" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    set_entry("gpu", entry_for(load_package(tiny), "cuda-trt"))
    set_entry("tiny2", entry_for(load_package(make_package(ew_home / "other" / "tiny2")), "cpu"))
    cases: list[tuple[list[str], type[EwError], str]] = [
        ([], UsageError, "usage"),
        (["tinny"], ConfigError, "model_unknown"),
        (["gpu"], ConfigError, "engine_mismatch"),
        (["./nowhere"], PackageError, "package_missing"),
        ([str(ew_home / "checkpoint")], PackageError, "not_a_package"),
        ([str(make_package(ew_home / "again" / "tiny2"))], ConfigError, "model_id_taken"),
        ([str(make_package(ew_home / "models" / "通义"))], ConfigError, "model_id_invalid"),
    ]
    for names, kind, code in cases:
        with pytest.raises(kind) as caught:
            resolve_models(names, "cpu")
        assert caught.value.code == code
        assert caught.value.hint


def test_a_damaged_package_is_found_before_anything_starts(ew_home: Path) -> None:
    folder = make_package(ew_home / "models" / "tiny")
    save_new_entries(*resolve_models([str(folder)], "cpu"))
    (folder / "ew.json").write_text("{}")
    with pytest.raises(PackageError) as caught:
        resolve_models(["tiny"], "cpu")
    assert caught.value.code == "manifest_invalid"


def test_a_cache_that_no_long_prompt_fits_is_refused_with_the_size_that_does(ew_home: Path) -> None:
    save_new_entries(*resolve_models([str(make_package(ew_home / "models" / "tiny"))], "cpu"))
    document = json.loads(config_text(ew_home))
    for tokens, fits in ((96, False), (97, True)):
        document["models"]["tiny"]["kv_cache_tokens"] = tokens
        (ew_home / "deploy" / "config.json").write_text(json.dumps(document))
        if fits:
            assert resolve_models(["tiny"], "cpu")[1] == ("tiny",)
            continue
        with pytest.raises(ConfigError) as caught:
            resolve_models(["tiny"], "cpu")
        assert caught.value.code == "kv_cache_too_small"
        assert "kv_cache_tokens" in caught.value.hint and "128" in caught.value.hint


def test_without_an_engine_each_model_has_its_entrys(ew_home: Path) -> None:
    tiny = load_package(make_package(ew_home / "models" / "tiny"))
    set_entry("gpu", entry_for(tiny, "cuda-trt"))
    new = make_package(ew_home / "models" / "new")
    config, ids = resolve_models(["gpu", str(new)], None)
    assert [config.models[model].engine for model in ids] == ["cuda-trt", "cpu"]
