"""What a model repository holds for one model id: the files of M, M-preprocessing, M-tensorrt_llm ..."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from builder.package import Package
from builder.pbtxt import CONFIG_NAME, TEMPLATES, fill_template
from common.config import ModelConfig
from common.errors import ConfigError, PackageError, RepositoryError, UsageError
from common.paths import SOURCE_ROOT

Layout = Literal["ew", "upstream"]
STEPS = ("preprocessing", "tensorrt_llm", "postprocessing")
VERSION = "1"
KEEP = f"{VERSION}/.keep"
WORKER_FILE = f"{VERSION}/worker.json"
EXECUTOR_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"
OLDEST_VERSION, NEWEST_VERSION = (0, 17), (1, 2)
NEWER_TEMPLATE = (0, 21)  # 0.20 has no token counts, no enable_trt_overlap and FP16 prompt tables only
SHARED_BY_TEXT_MODELS = ("common/__init__.py", "common/detokenize.py", "common/errors.py")
CHAT_MODULE = ("proxy/__init__.py", "proxy/chat.py")
STOPS_MODULE = ("proxy/__init__.py", "proxy/stops.py")
BLS_THREADS_PER_SLOT = 2
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)

# Parameters of tensorrt_llm in the order of the backend's own template. A name stands for the setting.
PARAMETER_ORDER = (
    "max_beam_width",
    "FORCE_CPU_ONLY_INPUT_TENSORS",
    "gpt_model_type",
    "gpt_model_path",
    "encoder_model_path",
    "max_tokens_in_paged_kv_cache",
    "max_attention_window_size",
    "sink_token_length",
    "batch_scheduler_policy",
    "kv_cache_free_gpu_mem_fraction",
    "cross_kv_cache_fraction",
    "kv_cache_host_memory_bytes",
    "kv_cache_onboard_blocks",
    "enable_trt_overlap",
    "exclude_input_in_output",
    "cancellation_check_period_ms",
    "stats_check_period_ms",
    "iter_stats_max_iterations",
    "request_stats_max_iterations",
    "enable_kv_cache_reuse",
    "normalize_log_probs",
    "enable_chunked_context",
    "gpu_device_ids",
    "participant_ids",
    "num_nodes",
    "lora_cache_optimal_adapter_size",
    "lora_cache_max_adapter_size",
    "lora_cache_gpu_memory_fraction",
    "lora_cache_host_memory_bytes",
    "lora_prefetch_dir",
    "decoding_mode",
    "executor_worker_path",
    "lookahead_window_size",
    "lookahead_ngram_size",
    "lookahead_verification_set_size",
    "medusa_choices",
    "eagle_choices",
    "gpu_weights_percent",
    "enable_context_fmha_fp32_acc",
    "multi_block_mode",
    "cuda_graph_mode",
    "cuda_graph_cache_size",
    "speculative_decoding_fast_logits",
    "tokenizer_dir",
    "guided_decoding_backend",
    "xgrammar_tokenizer_info_path",
)


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model id, relative to the repository, and the folders they make up."""

    model_id: str
    files: dict[str, bytes]

    @property
    def folders(self) -> set[str]:
        return {name.split("/", 1)[0] for name in self.files}


@dataclass(frozen=True)
class _Target:
    """One model id to render: its configuration, its package and the repository it goes to."""

    model_id: str
    config: ModelConfig
    package: Package
    repository: Path
    trtllm_version: str
    layout: Layout

    @property
    def is_older_backend(self) -> bool:
        """Whether NVIDIA's backend is of the 0.17 to 0.20 generation."""
        return self.driver == "native" and _version_numbers(self.trtllm_version) < NEWER_TEMPLATE

    @property
    def driver(self) -> str:
        """What stands behind tensorrt_llm: NVIDIA's backend, our backend of its name, or our Python model."""
        if self.config.engine == "cpu":
            return "bridge-backend"
        pytorch_era = self.package.manifest.runtime.era == "pytorch"
        return "bridge-model" if self.config.engine != "cuda-trt" or pytorch_era else "native"

    def folder(self, kind: str) -> str:
        if self.layout == "upstream":
            return kind
        return self.model_id if kind == "ensemble" else f"{self.model_id}-{kind}"


def model_files(
    model_id: str,
    config: ModelConfig,
    package: Package,
    repository: Path,
    *,
    trtllm_version: str | None = None,
    layout: Layout = "ew",
) -> ModelFiles:
    """Everything that is rendered for one model id.

    Args:
        trtllm_version: TensorRT-LLM of the container that will serve it; the package's when not given.
        layout: folders called after the model, or the fixed names of upstream's templates.

    Raises:
        UsageError: that version has no engine backend for Triton.
        PackageError: the package lacks a tokenizer, or an engine that is needed.
        RepositoryError: a template cannot be filled or does not give a valid configuration.
    """
    version = trtllm_version or package.manifest.runtime.tensorrt_llm
    target = _Target(model_id, config, package, repository, version, layout)
    if target.driver == "native":
        _refuse_other_versions(target.trtllm_version)
    kinds = {
        "ensemble": _ensemble,
        "preprocessing": _preprocessing,
        "tensorrt_llm": _tensorrt_llm,
        "postprocessing": _postprocessing,
        **({"tensorrt_llm_bls": _bls} if config.triton.bls else {}),
    }
    files = {}
    for kind, parts in kinds.items():
        folder = target.folder(kind)
        files.update({f"{folder}/{name}": content for name, content in parts(target).items()})
    return ModelFiles(model_id, files)


def _ensemble(target: _Target) -> dict[str, bytes]:
    return {CONFIG_NAME: _config(target, "ensemble", {}), KEEP: b""}


def _preprocessing(target: _Target) -> dict[str, bytes]:
    settings = target.config.triton
    parameters = {
        "tokenizer_dir": "tokenizer",
        "add_special_tokens": settings.add_special_tokens,
        "multimodal_model_path": None,
        "gpt_model_path": None,
        "max_num_images": None,
        "apply_chat_template": settings.apply_chat_template,
        "truncation": settings.truncation,
        "max_input_len": target.config.max_input_len,
    }
    files = _python_model("preprocessing", (*SHARED_BY_TEXT_MODELS, *CHAT_MODULE))
    return {
        CONFIG_NAME: _config(target, "preprocessing", parameters),
        **files,
        **_tokenizer_files(target.package, TOKENIZER_FILES),
    }


def _postprocessing(target: _Target) -> dict[str, bytes]:
    parameters = {
        "tokenizer_dir": "tokenizer",
        "skip_special_tokens": target.config.triton.skip_special_tokens,
    }
    return {
        CONFIG_NAME: _config(target, "postprocessing", parameters),
        **_python_model("postprocessing", SHARED_BY_TEXT_MODELS),
        **_tokenizer_files(target.package, TOKENIZER_FILES[:1]),
    }


def _bls(target: _Target) -> dict[str, bytes]:
    settings = target.config.triton
    parameters = {
        "accumulate_tokens": settings.accumulate_tokens,
        "tensorrt_llm_model_name": target.folder("tensorrt_llm"),
        "tensorrt_llm_draft_model_name": None,
        "multimodal_encoders_name": None,
        "preprocessing_model_name": target.folder("preprocessing"),
        "tokenizer_dir": "tokenizer",
        "skip_special_tokens": settings.skip_special_tokens,
        # Requests beyond the engine's own batch can wait in it, where they are scheduled best.
        "max_concurrent_requests": BLS_THREADS_PER_SLOT * target.config.max_batch_size,
    }
    return {
        CONFIG_NAME: _config(target, "tensorrt_llm_bls", parameters),
        **_python_model("tensorrt_llm_bls", (*SHARED_BY_TEXT_MODELS, *STOPS_MODULE)),
        **_tokenizer_files(target.package, TOKENIZER_FILES[:1]),
    }


def _tensorrt_llm(target: _Target) -> dict[str, bytes]:
    config = {CONFIG_NAME: _config(target, "tensorrt_llm", _engine_parameters(target))}
    if target.driver == "native":
        return {**config, KEEP: b""}
    files = {**config, WORKER_FILE: _worker_json(target)}
    if target.driver == "bridge-model":
        files.update(_bridge_files())
    return files


def _config(target: _Target, kind: str, parameters: dict[str, Any]) -> bytes:
    settings = target.config.triton
    variables = {
        **settings.model_dump(),
        "name": target.folder(kind),
        "steps": {kind: target.folder(kind) for kind in STEPS},
        "backend": "python" if target.driver == "bridge-model" else "tensorrtllm",
        "max_batch_size": target.config.max_batch_size,
        "has_token_counts": not target.is_older_backend,
        "parameters": {key: _parameter_text(value) for key, value in parameters.items()},
    }
    if target.is_older_backend:
        variables["prompt_embedding_table_data_type"] = "FP16"
    return fill_template(kind, variables).encode()


def _engine_parameters(target: _Target) -> dict[str, Any]:
    fixed = {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_path": str(_model_path(target)),
        "encoder_model_path": None,
        "executor_worker_path": EXECUTOR_WORKER,
        "tokenizer_dir": None,
    }
    values = {**target.config.triton.model_dump(), **fixed}
    skipped = ("enable_trt_overlap",) if target.is_older_backend else ()
    return {key: values[key] for key in PARAMETER_ORDER if key not in skipped}


def _model_path(target: _Target) -> Path:
    """The engine folder for NVIDIA's backend, the checkpoint for engines driven from Python."""
    package = target.package
    if target.driver != "native":
        return package.checkpoint
    if not package.has_engine:
        raise PackageError(
            f"The package {package.folder} has no TensorRT engine yet.",
            why=package.manifest.engine.reason,
            hint=" ".join(package.manifest.engine.command) or "Run ./ew convert-trt on a machine with a GPU.",
            code="engine_pending",
        )
    return package.engine


def _parameter_text(value: Any) -> str:
    """How the backend reads a value: lower-case booleans, empty for not set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _refuse_other_versions(version: str) -> None:
    if OLDEST_VERSION <= _version_numbers(version) <= NEWEST_VERSION:
        return
    raise UsageError(
        f"TensorRT-LLM {version} cannot serve an engine through this repository.",
        why="The engine backend for Triton is supported from 0.17 to 1.2; 1.3 removed it.",
        hint="Use --trtllm-version with the version in your container, or convert with --runtime pytorch.",
        code="trtllm_version",
    )


def _version_numbers(version: str) -> tuple[int, int]:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _worker_json(target: _Target) -> bytes:
    config = target.config
    document = {
        "engine": config.engine,
        "python": None,
        "root": _portable(SOURCE_ROOT, target),
        "package": _portable(target.package.folder, target),
        "options": _worker_options(config),
        "env": {},
    }
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()


def _worker_options(config: ModelConfig) -> dict[str, Any]:
    """What the engine's adapter in worker/ accepts."""
    options: dict[str, Any] = {
        "max_batch_size": config.max_batch_size,
        "max_input_len": config.max_input_len,
        "max_output_len": config.max_output_len,
    }
    if config.engine == "cpu":
        cpu = {"precision": config.precision, "kv_cache_tokens": config.kv_cache_tokens, "threads": None}
        window = _single_window(config)
        return {**cpu, **options, **({"max_attention_window_size": window} if window else {})}
    return {
        **options,
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "gpu_memory_fraction": config.triton.kv_cache_free_gpu_mem_fraction,
    }


def _single_window(config: ModelConfig) -> int | None:
    """The sliding window of the cpu engine, which has one for all layers."""
    windows = {int(size) for size in (config.triton.max_attention_window_size or "").split(",") if size}
    if len(windows) > 1:
        raise ConfigError(
            "The cpu engine cannot give each layer a window of its own.",
            why=f"max_attention_window_size is {config.triton.max_attention_window_size}.",
            hint="Give one window for all layers, or none.",
            code="window_per_layer",
        )
    return windows.pop() if windows else None


def _portable(path: Path, target: _Target) -> str:
    """`path` as the version folder sees it where both lie in one tree that may be moved, else absolute."""
    version_folder = target.repository / target.folder("tensorrt_llm") / VERSION
    if path.is_relative_to(target.repository.parent):
        return os.path.relpath(path, version_folder)
    return str(path)


def _bridge_files() -> dict[str, bytes]:
    sources = [*sorted((TEMPLATES / "bridge").glob("*.py")), SOURCE_ROOT / "worker" / "protocol.py"]
    return {f"{VERSION}/{source.name}": source.read_bytes() for source in sources}


def _python_model(kind: str, shared: Iterable[str]) -> dict[str, bytes]:
    """The Python files of a text model, and the modules of ours that it imports, under their own names."""
    sources = (source for folder in (kind, "shared") for source in sorted((TEMPLATES / folder).glob("*.py")))
    own = {f"{VERSION}/{source.name}": source.read_bytes() for source in sources}
    if f"{VERSION}/model.py" not in own:
        raise RepositoryError(f"{TEMPLATES / kind} has no model.py.", hint="Restore the checkout.")
    return {**own, **{f"{VERSION}/{name}": (SOURCE_ROOT / name).read_bytes() for name in shared}}


def _tokenizer_files(package: Package, names: Iterable[str]) -> dict[str, bytes]:
    files = dict(_existing(package.tokenizer, names))
    if "tokenizer.json" not in files:
        raise PackageError(
            f"{package.tokenizer} has no tokenizer.json.",
            why="The text models tokenize with the tokenizers library, which reads this file.",
            hint="Add a tokenizer.json to the source checkpoint and convert it again.",
            code="tokenizer_missing",
        )
    return {f"{VERSION}/tokenizer/{name}": content for name, content in files.items()}


def _existing(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        path = folder / name
        if path.is_file():
            yield name, path.read_bytes()
