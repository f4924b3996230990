"""Lint beyond ew's own repositories: upstream's templates, engines, vLLM; output forms, fixes, the pages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.lint import Options, lint
from builder.lint.fix import apply_fixes
from builder.lint.report import as_sarif, as_text, has_errors
from common.errors import RepositoryError
from common.paths import SOURCE_ROOT
from tests.builder.lint.upstream import FILLED, write_engine, write_upstream
from tests.proxy.tokenizers_made import byte_level

EW = [sys.executable, str(SOURCE_ROOT / "cli" / "__main__.py"), "lint"]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    byte_level().save(str(tokenizer / "tokenizer.json"))
    return {"engine": write_engine(tmp_path / "engine"), "tokenizer": tokenizer}


def found(repository: Path, **options: Any) -> set[tuple[str, str]]:
    return {(finding.rule.id, finding.file) for finding in lint(repository, Options(**options))}


def edit(repository: Path, model: str, old: str, new: str) -> None:
    path = repository / model / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_upstream_unfilled_does_not_load(tmp_path: Path, places: dict[str, Path]) -> None:
    repository = write_upstream(tmp_path / "repo", {}, **places)
    findings = lint(repository)
    for model in ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls"):
        assert any(f.rule.id == "EW103" and f.file == f"{model}/config.pbtxt" for f in findings), model


def test_upstream_filled_as_its_readme_says_loads_with_warnings(
    tmp_path: Path, places: dict[str, Path]
) -> None:
    repository = write_upstream(tmp_path / "repo", FILLED, **places)
    findings = lint(repository)
    assert not has_errors(findings), as_text(findings)
    assert {finding.rule.id for finding in findings} == {"EW107", "EW109"}
    twice = [finding.message for finding in findings if finding.rule.id == "EW107"]
    assert twice == ["output kv_cache_alloc_total_blocks is declared 2 times"]


@pytest.mark.parametrize(
    ("missing", "model"),
    [
        ("prompt_embedding_table_data_type", "tensorrt_llm"),
        ("encoder_input_features_data_type", "tensorrt_llm"),
        ("logits_datatype", "ensemble"),
        ("bls_instance_count", "tensorrt_llm_bls"),
        ("batching_strategy", "tensorrt_llm"),
    ],
)
def test_one_forgotten_placeholder(tmp_path: Path, places: dict[str, Path], missing: str, model: str) -> None:
    values = {key: value for key, value in FILLED.items() if key != missing}
    repository = write_upstream(tmp_path / "repo", values, **places)
    named = {(f.rule.id, f.file, f.subject) for f in lint(repository)}
    key = "gpt_model_type" if missing == "batching_strategy" else missing
    assert ("EW103", f"{model}/config.pbtxt", key) in named


def test_batch_sizes_that_differ_between_files(tmp_path: Path, places: dict[str, Path]) -> None:
    repository = write_upstream(tmp_path / "repo", FILLED, **places)
    edit(repository, "postprocessing", "max_batch_size: 64", "max_batch_size: 8")
    assert ("EW511", "ensemble/config.pbtxt") in found(repository)


def test_engine_folder_gpus_and_version(tmp_path: Path, places: dict[str, Path]) -> None:
    engine = write_engine(tmp_path / "tp2", ranks=2, version="1.1.0")
    values = {**FILLED, "gpu_device_ids": "0"}
    repository = write_upstream(tmp_path / "repo", values, engine=engine, tokenizer=places["tokenizer"])
    file = "tensorrt_llm/config.pbtxt"
    assert ("EW307", file) in found(repository)
    assert ("EW308", file) in found(repository, trtllm_version="1.2.1")
    assert ("EW308", file) not in found(repository, trtllm_version="1.1.0")
    edit(repository, "tensorrt_llm", 'string_value: "0"', 'string_value: "0,1"')
    assert ("EW307", file) not in found(repository)
    (engine / "rank0.engine").unlink()
    (engine / "rank1.engine").unlink()
    assert ("EW306", file) in found(repository)
    (engine / "config.json").unlink()
    assert ("EW306", file) in found(repository)
    assert not [rule for rule, _ in found(repository, check_paths=False) if rule in ("EW306", "EW307")]


def test_a_tokenizer_by_hub_id_is_no_error(tmp_path: Path, places: dict[str, Path]) -> None:
    places["tokenizer"] = Path("Qwen/Qwen2.5-7B-Instruct")
    repository = write_upstream(tmp_path / "repo", FILLED, **places)
    assert "EW406" not in {rule for rule, _ in found(repository)}


@pytest.mark.parametrize(
    ("content", "breached"),
    [('{"model": "m"}', False), ("{", True), ("[]", True), ("{}", True), (None, True)],
)
def test_vllm_arguments(tmp_path: Path, content: str | None, breached: bool) -> None:
    version = tmp_path / "llama" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text('backend: "vllm"\ninstance_group [ { kind: KIND_MODEL } ]\n')
    if content is not None:
        (version / "model.json").write_text(content)
    assert (("EW409", "llama/1/model.json") in found(tmp_path)) is breached


def test_nothing_to_lint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(RepositoryError) as caught:
            lint(folder)
        assert caught.value.code == "no_repository"


def test_fix_repairs_what_is_safe(tmp_path: Path, places: dict[str, Path]) -> None:
    values = {**FILLED, "enable_chunked_context": "yes", "normalize_log_probs": "off"}
    repository = write_upstream(tmp_path / "repo", values, **places)
    edit(repository, "tensorrt_llm", 'name: "tensorrt_llm"', 'name: "trtllm"')
    path = repository / "tensorrt_llm" / "config.pbtxt"
    path.write_text(path.read_text().replace('key: "xgrammar_tokenizer_info_path"', 'key: "xgrammar"'))
    (repository / "ensemble" / "1").rmdir()
    before = lint(repository)
    fixed = {finding.rule.id for finding in apply_fixes(repository, before)}
    assert fixed == {"EW104", "EW105", "EW109", "EW301", "EW303"}
    left = {finding.rule.id for finding in lint(repository)}
    assert left == {"EW107", "EW304"}
    text = path.read_text()
    assert 'key: "enable_chunked_context"\n  value: {\n    string_value: "true"' in text
    assert 'key: "normalize_log_probs"\n  value: {\n    string_value: "false"' in text


def test_command_line_forms(tmp_path: Path, places: dict[str, Path]) -> None:
    repository = write_upstream(tmp_path / "repo", {**FILLED, "gpu_device_ids": "x"}, **places)
    plain = subprocess.run([*EW, str(repository)], capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    assert "tensorrt_llm/config.pbtxt:" in plain.stdout
    assert "error: gpu_device_ids is 'x'" in plain.stdout
    document = json.loads(
        subprocess.run([*EW, str(repository), "--json"], capture_output=True, text=True, check=False).stdout
    )
    wrong = next(entry for entry in document["findings"] if entry["rule"] == "EW302")
    assert (SOURCE_ROOT / wrong["page"]).is_file()
    edit(repository, "tensorrt_llm", 'string_value: "x"', 'string_value: "0"')
    good = subprocess.run([*EW, str(repository)], capture_output=True, text=True, check=False)
    strict = subprocess.run([*EW, str(repository), "--strict"], capture_output=True, text=True, check=False)
    assert (good.returncode, strict.returncode) == (0, 1)


def test_sarif_names_rule_file_and_line(tmp_path: Path, places: dict[str, Path]) -> None:
    repository = write_upstream(tmp_path / "repo", {}, **places)
    findings = lint(repository)
    log = as_sarif(findings, "1")
    run = log["runs"][0]
    assert log["version"] == "2.1.0"
    assert {result["ruleId"] for result in run["results"]} == {
        rule["id"] for rule in run["tool"]["driver"]["rules"]
    }
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == findings[0].file
    assert place["region"]["startLine"] == findings[0].line >= 1


def test_the_rule_pages_are_fresh() -> None:
    script = SOURCE_ROOT / "scripts" / "lint_docs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_version_that_is_none_is_refused(tmp_path: Path, places: dict[str, Path]) -> None:
    repository = write_upstream(tmp_path / "repo", FILLED, **places)
    command = [*EW, str(repository), "--trtllm-version", "abc", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "bad_version")
