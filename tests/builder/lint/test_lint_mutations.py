"""Each rule finds its mutation of a good repository, in the right file; the good one gives nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.lint import lint
from builder.lint.rules import RULES
from builder.render import render
from common.config import parse_config
from common.paths import Home
from tests.builder.lint.mutating import found, mutate
from tests.builder.lint.test_lint_engines import ENGINE_MUTATIONS
from tests.builder.lint.test_lint_layouts import LLMAPI_MUTATIONS, VERSION_CHANGES, VLLM_MUTATIONS
from tests.packages import make_package
from tests.proxy.tokenizers_made import byte_level

ENGINE = "m-tensorrt_llm/config.pbtxt"
PRE = "m-preprocessing/config.pbtxt"
POST = "m-postprocessing/config.pbtxt"
BLS = "m-tensorrt_llm_bls/config.pbtxt"
ENSEMBLE = "m/config.pbtxt"
WORKER = "m-tensorrt_llm/1/worker.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one rendered model."""
    home = Home(tmp_path_factory.mktemp("good"))
    make_package(home.root / "models" / "m", byte_level())
    config = {"models": {"m": {"engine": "cpu", "model_path": "models/m", "max_batch_size": 8}}}
    render(parse_config(config), home)
    return home.root


@pytest.fixture
def repository(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "home")
    return tmp_path / "home" / "model_repository"


def parameter(key: str, value: str) -> tuple[str, str]:
    """A replacement that sets a parameter."""
    return rf'(key: "{key}" value: {{ string_value: )"[^"]*"', rf'\g<1>"{value}"'


def without_parameter(key: str) -> tuple[str, str]:
    return rf'parameters {{ key: "{key}" .*\n', ""


def without_tensor(name: str) -> tuple[str, str]:
    return rf'(input|output) {{ name: "{name}" .*\n', ""


# rule, file in which it is found, file that is changed, pattern, replacement
MUTATIONS = [
    ("EW102", PRE, PRE, r"max_batch_size", "max_batch_sise"),
    ("EW102", POST, POST, r'"python"', '"python'),
    ("EW102", ENGINE, ENGINE, r"TYPE_INT32", "TYPE_INT33"),
    ("EW102", ENSEMBLE, ENSEMBLE, r"step \[", "step ["[:-1]),
    ("EW102", BLS, BLS, r"decoupled: true", "decoupled: yes"),
    ("EW102", PRE, PRE, r"max_batch_size: 8", f"max_batch_size: {10**21}"),
    ("EW103", ENGINE, ENGINE, r"max_batch_size: 8", "max_batch_size: ${triton_max_batch_size}"),
    ("EW103", ENGINE, ENGINE, r'backend: "tensorrtllm"', 'backend: "${triton_backend}"'),
    ("EW103", ENGINE, ENGINE, r"TYPE_FP32", "${logits_datatype}"),
    ("EW103", ENGINE, ENGINE, *parameter("gpt_model_path", "${engine_dir}")),
    ("EW103", PRE, PRE, *parameter("tokenizer_dir", "${tokenizer_dir}")),
    ("EW104", ENGINE, ENGINE, r'name: "m-tensorrt_llm"', 'name: "tensorrt_llm"'),
    ("EW104", ENSEMBLE, ENSEMBLE, r'name: "m"', 'name: "M"'),
    ("EW106", POST, POST, r'backend: "python"\n', ""),
    ("EW107", PRE, PRE, r"(output .*\n)", r"\1\1"),
    ("EW107", ENSEMBLE, ENSEMBLE, r'(output { name: "batch_index" .*\n)', r"\1\1"),
    ("EW109", ENGINE, ENGINE, *parameter("max_beam_width", "${max_beam_width}")),
    ("EW109", POST, POST, *parameter("skip_special_tokens", "${skip_special_tokens}")),
    ("EW201", ENGINE, ENGINE, r"preferred_batch_size: \[ 8 \]", "preferred_batch_size: [ 9 ]"),
    ("EW201", PRE, PRE, r"preferred_batch_size: \[ 8 \]", "preferred_batch_size: [ 4, 16 ]"),
    ("EW202", POST, POST, r"max_batch_size: 8", "max_batch_size: 0"),
    ("EW202", ENGINE, ENGINE, r"max_batch_size: 8", "max_batch_size: 0"),
    ("EW203", PRE, PRE, r"max_batch_size: 8", "max_batch_size: -1"),
    ("EW203", PRE, PRE, r"preferred_batch_size: \[ 8 \]", "preferred_batch_size: [ 0 ]"),
    ("EW203", BLS, BLS, r"count: 1", "count: -2"),
    ("EW204", PRE, PRE, r"dims: \[ -1 \]", "dims: [ 0 ]"),
    ("EW204", ENGINE, ENGINE, r"dims: \[ 2, -1 \]", "dims: [ 2, -2 ]"),
    ("EW102", POST, POST, r"dynamic_batching { }", "dynamic_batching { }\nsequence_batching { }"),
    ("EW301", ENGINE, ENGINE, *without_parameter("gpt_model_type")),
    ("EW301", ENGINE, ENGINE, *without_parameter("tokenizer_dir")),
    ("EW301", ENGINE, ENGINE, *without_parameter("guided_decoding_backend")),
    ("EW301", ENGINE, ENGINE, *without_parameter("xgrammar_tokenizer_info_path")),
    ("EW302", ENGINE, ENGINE, *parameter("kv_cache_free_gpu_mem_fraction", "90")),
    ("EW302", ENGINE, ENGINE, *parameter("batch_scheduler_policy", "fast")),
    ("EW302", ENGINE, ENGINE, *parameter("max_beam_width", "two")),
    ("EW302", ENGINE, ENGINE, *parameter("gpu_device_ids", "0:1")),
    ("EW302", ENGINE, ENGINE, *parameter("medusa_choices", "[0]")),
    ("EW302", ENGINE, ENGINE, *parameter("decoding_mode", "greedy")),
    ("EW302", ENGINE, ENGINE, *parameter("gpt_model_type", "")),
    ("EW302", ENGINE, ENGINE, *parameter("max_attention_window_size", "4096 2048")),
    ("EW303", ENGINE, ENGINE, *parameter("enable_kv_cache_reuse", "yes")),
    ("EW303", ENGINE, ENGINE, *parameter("exclude_input_in_output", "on")),
    ("EW303", ENGINE, ENGINE, *parameter("enable_chunked_context", "tRue")),
    ("EW304", ENGINE, ENGINE, r'key: "kv_cache_host_memory_bytes"', 'key: "kv_cache_host_memory"'),
    ("EW304", ENGINE, ENGINE, r'key: "num_nodes"', 'key: "worker_path"'),
    ("EW305", ENGINE, ENGINE, *parameter("gpt_model_type", "V1")),
    ("EW309", ENGINE, ENGINE, *parameter("decoding_mode", "lookahead")),
    ("EW310", ENGINE, ENGINE, r"decoupled: true", "decoupled: false"),
    (
        "EW311",
        ENGINE,
        ENGINE,
        r'name: "temperature" data_type: TYPE_FP32',
        'name: "temperature" data_type: TYPE_FP16',
    ),
    ("EW311", ENGINE, ENGINE, r'name: "runtime_top_k"', 'name: "top_k"'),
    ("EW311", ENGINE, ENGINE, r'(name: "input_ids" .*) dims: \[ -1 \]', r"\1 dims: [ -1, -1 ]"),
    ("EW312", ENGINE, ENGINE, *without_tensor("sequence_length")),
    ("EW312", ENGINE, ENGINE, *without_tensor("request_output_len")),
    ("EW313", ENGINE, ENGINE, r"count: 1", "count: 2"),
    ("EW314", ENGINE, ENGINE, *parameter("guided_decoding_backend", "xgrammar")),
    (
        "EW402",
        "m-postprocessing/1/stream_texts.py",
        "m-postprocessing/1/stream_texts.py",
        r"def start\(",
        "def start((",
    ),
    (
        "EW403",
        "m-preprocessing/1/model.py",
        "m-preprocessing/1/model.py",
        r"from prompts import",
        "from promts import",
    ),
    (
        "EW403",
        "m-preprocessing/1/model.py",
        "m-preprocessing/1/model.py",
        r"import Prompts,",
        "import Prompt, Prompts,",
    ),
    ("EW110", PRE, PRE, r"\Z", "version_policy: { specific: { versions: [ 1, 4 ] } }\n"),
    ("EW404", "m-postprocessing/1/model.py", "m-postprocessing/1/model.py", r"def execute", "def run"),
    ("EW405", PRE, PRE, *without_parameter("multimodal_model_path")),
    ("EW405", POST, POST, *without_parameter("tokenizer_dir")),
    ("EW405", PRE, PRE, *without_parameter("truncation")),
    ("EW405", BLS, BLS, *without_parameter("max_concurrent_requests")),
    ("EW406", BLS, BLS, *parameter("tokenizer_dir", "../tokenizer")),
    ("EW406", PRE, PRE, *parameter("tokenizer_dir", "tokenizers")),
    ("EW406", POST, POST, *parameter("tokenizer_dir", "")),
    ("EW407", PRE, PRE, *without_tensor("EMBEDDING_BIAS_WORDS")),
    ("EW407", POST, POST, *without_tensor("SEQUENCE_LENGTH")),
    ("EW408", BLS, BLS, *parameter("tensorrt_llm_model_name", "tensorrt_llm")),
    ("EW501", ENSEMBLE, ENSEMBLE, r'model_name: "m-postprocessing"', 'model_name: "postprocessing"'),
    ("EW502", ENSEMBLE, ENSEMBLE, r'key: "runtime_top_k" value', 'key: "top_k" value'),
    ("EW502", ENSEMBLE, PRE, *without_tensor("DECODER_QUERY")),
    ("EW503", ENSEMBLE, ENSEMBLE, r'output_map { key: "OUTPUT"', 'output_map { key: "TEXT"'),
    ("EW503", ENSEMBLE, PRE, *without_tensor("OUT_PAD_ID")),
    (
        "EW504",
        ENSEMBLE,
        ENSEMBLE,
        r'key: "input_ids" value: "_INPUT_ID"',
        'key: "input_ids" value: "_INPUT_IDS"',
    ),
    ("EW505", ENSEMBLE, ENSEMBLE, r' *input_map { key: "SEQUENCE_LENGTH" .*\n', ""),
    ("EW516", ENSEMBLE, PRE, r'(name: "BAD_WORDS_DICT" .*) optional: true', r"\1"),
    (
        "EW506",
        ENSEMBLE,
        PRE,
        r'name: "INPUT_ID" data_type: TYPE_INT32',
        'name: "INPUT_ID" data_type: TYPE_INT64',
    ),
    (
        "EW506",
        ENSEMBLE,
        ENSEMBLE,
        r'name: "seed" data_type: TYPE_UINT64',
        'name: "seed" data_type: TYPE_INT64',
    ),
    ("EW506", ENSEMBLE, ENSEMBLE, r"(name: \"context_logits\" data_type: )TYPE_FP32", r"\1TYPE_FP16"),
    ("EW507", ENSEMBLE, POST, r"dims: \[ -1, -1 \]", "dims: [ -1 ]"),
    ("EW507", ENSEMBLE, ENSEMBLE, r'(name: "lora_config" .*) dims: \[ -1, 3 \]', r"\1 dims: [ -1, 4 ]"),
    ("EW508", ENSEMBLE, ENSEMBLE, r' *input_map { key: "seed" .*\n', ""),
    ("EW508", ENSEMBLE, ENSEMBLE, r' *output_map { key: "batch_index" .*\n', ""),
    (
        "EW508",
        ENSEMBLE,
        ENSEMBLE,
        r'(output { name: "text_output")',
        r'output { name: "x" data_type: TYPE_BOOL dims: [ 1 ] }\n\1',
    ),
    ("EW509", ENSEMBLE, ENSEMBLE, r'value: "_SEQUENCE_LENGTH" }\n(?= *output)', 'value: "_TOKENS_BATCH" }\n'),
    ("EW510", ENSEMBLE, ENSEMBLE, r' *input_map { key: "bad_words_list" .*\n', ""),
    ("EW510", ENSEMBLE, ENSEMBLE, *without_tensor("num_output_tokens")),
    ("EW511", ENSEMBLE, ENSEMBLE, r"max_batch_size: 8", "max_batch_size: 16"),
    ("EW511", ENSEMBLE, POST, r"max_batch_size: 8", "max_batch_size: 4"),
    (
        "EW512",
        ENSEMBLE,
        ENSEMBLE,
        r'value: "_SEQUENCE_LENGTH" }(?=\n *output_map { key: "OUTPUT")',
        'value: "_REQUEST_INPUT_LEN" }',
    ),
    (
        "EW513",
        ENSEMBLE,
        ENSEMBLE,
        r"ensemble_scheduling",
        "instance_group [ { count: 1 } ]\nensemble_scheduling",
    ),
    ("EW514", ENSEMBLE, ENSEMBLE, r"model_version: -1", "model_version: 3"),
    ("EW515", ENSEMBLE, ENSEMBLE, r"ensemble_scheduling {[\s\S]*", ""),
    ("EW601", WORKER, WORKER, r'"engine": "cpu"', '"engine": "gpu"'),
    ("EW601", WORKER, WORKER, r'"max_batch_size": 8', '"max_batch_size": 0'),
    ("EW601", WORKER, WORKER, r"}\s*\Z", ""),
    ("EW602", WORKER, WORKER, r'"package": "[^"]*"', '"package": "../nowhere"'),
    ("EW602", WORKER, WORKER, r'"root": "[^"]*"', '"root": "/nowhere"'),
]

# rule, file, and a change of files
CHANGES: list[tuple[str, str, Callable[[Path], object]]] = [
    ("EW101", "m-postprocessing/config.pbtxt", lambda r: (r / POST).unlink()),
    ("EW101", "stray/config.pbtxt", lambda r: (r / "stray" / "1").mkdir(parents=True)),
    ("EW105", ENSEMBLE, lambda r: shutil.rmtree(r / "m" / "1")),
    ("EW105", PRE, lambda r: (r / "m-preprocessing" / "1").rename(r / "m-preprocessing" / "v1")),
    ("EW108", "m/config.pbtxt", lambda r: shutil.copytree(r / "m", r / "M")),
    ("EW401", PRE, lambda r: (r / "m-preprocessing/1/model.py").unlink()),
    ("EW403", "m-postprocessing/1/model.py", lambda r: (r / "m-postprocessing/1/stream_starts.py").unlink()),
    ("EW406", PRE, lambda r: shutil.rmtree(r / "m-preprocessing/1/tokenizer")),
    ("EW501", ENSEMBLE, lambda r: shutil.rmtree(r / "m-preprocessing")),
    ("EW102", POST, lambda r: (r / POST).write_bytes(b"\xff\xfe")),
]


def test_the_good_repository_gives_nothing(repository: Path) -> None:
    assert lint(repository) == []


@pytest.mark.parametrize(("rule", "file", "changed", "pattern", "replacement"), MUTATIONS)
def test_mutation_is_found(
    repository: Path, rule: str, file: str, changed: str, pattern: str, replacement: str
) -> None:
    mutate(repository / changed, pattern, replacement)
    assert (rule, file) in found(repository)


@pytest.mark.parametrize(("rule", "file", "change"), CHANGES)
def test_change_of_files_is_found(
    repository: Path, rule: str, file: str, change: Callable[[Path], object]
) -> None:
    change(repository)
    assert (rule, file) in found(repository)


def test_there_are_enough_mutations_and_each_rule_has_one() -> None:
    assert len(MUTATIONS) + len(CHANGES) >= 60  # of one good repository
    tables = (MUTATIONS, CHANGES, LLMAPI_MUTATIONS, VLLM_MUTATIONS, VERSION_CHANGES, ENGINE_MUTATIONS)
    assert {rule for table in tables for rule, *_ in table} == set(RULES)


def test_lines_are_those_of_the_text(repository: Path) -> None:
    path = repository / ENGINE
    lines = path.read_text().splitlines()
    number = next(index for index, line in enumerate(lines, 1) if "batch_scheduler_policy" in line)
    lines[number - 1] = lines[number - 1].replace("guaranteed_no_evict", "fast")
    path.write_text("\n".join(lines))
    assert [(finding.rule.id, finding.line) for finding in lint(repository)] == [("EW302", number)]


def test_a_number_too_large_is_found_at_its_line(repository: Path) -> None:
    mutate(repository / POST, r"max_batch_size: 8", f"max_batch_size: {10**21}")
    (finding,) = [finding for finding in lint(repository) if finding.file == POST]
    assert (finding.rule.id, finding.line) == ("EW102", 3)
