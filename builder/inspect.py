"""Look at a Hugging Face folder without touching its weights: config, files, headers, quantization.

Every detected value carries its reason; everything that is not a convertible checkpoint is refused here,
in milliseconds, with a message of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import families
from builder.hf_fields import check_fields
from builder.prequantized import PreQuantized, find_quantization
from common.errors import CheckpointError, ResourceError
from common.tensors import INDEX_NAME, TensorFolder

LFS_MARK = b"version https://git-lfs"
SAMPLES = 64
SAMPLE_BYTES = 4096
PICKLE_SUFFIXES = (".bin", ".pth", ".pt")


@dataclass(frozen=True)
class WeightFile:
    """One weight file of the source: what tells that it is unchanged."""

    name: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Inspection:
    """What a source folder holds. `digest` stands for config, index, weight headers and weight samples."""

    folder: Path
    config: dict[str, Any]
    family: str
    model_type: str | None
    architecture: str
    dtype: str
    weights: tuple[WeightFile, ...]
    parameters: int
    quantization: PreQuantized | None
    digest: str
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        return sum(file.bytes for file in self.weights)


def inspect(
    folder: Path,
    *,
    model_type: str | None = None,
    allow_pickle: bool = False,
    convertible: bool = True,
    need_weights: bool = True,
) -> Inspection:
    """Read `config.json`, the weight headers and the quantization files of a Hugging Face folder.

    Args:
        convertible: refuse models that cannot become a TRT-LLM checkpoint.
        need_weights: refuse a folder without weights; a plan needs only its config.

    Raises:
        CheckpointError: not a checkpoint, broken, incomplete or pickled without permission.
        UnsupportedModelError: a checkpoint of a model that cannot be converted.
        ResourceError: not readable.
    """
    config = read_config(folder)
    family, family_reason = _family(config, model_type, convertible)
    weights = find_weights(folder, allow_pickle=allow_pickle) if need_weights else ()
    tensors = _read_headers(folder, weights)
    dtype, dtype_reason = _source_dtype(config, tensors)
    quantization = find_quantization(folder, config)
    reasons = {"family": family_reason, "dtype": dtype_reason}
    if quantization:
        reasons["quantization"] = quantization.reason
    return Inspection(
        folder=folder,
        config=config,
        family=family,
        model_type=config.get("model_type"),
        architecture=_architecture(config),
        dtype=dtype,
        weights=weights,
        parameters=sum(tensors.info(name).items for name in tensors) if tensors else 0,
        quantization=quantization,
        digest=source_digest(folder, weights),
        reasons=reasons,
    )


def _family(config: dict[str, Any], model_type: str | None, convertible: bool) -> tuple[str, str]:
    if not convertible:
        return str(config.get("model_type", "unknown")), "model_type of config.json"
    detection = families.detect(config, model_type)
    return detection.name, detection.reason


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a Hugging Face folder; refuses everything that is something else."""
    config = read_config_object(folder)
    _refuse_trtllm(folder, config)
    check_fields(config)
    return config


def read_config_object(folder: Path) -> dict[str, Any]:
    """`config.json` of any checkpoint folder.

    Raises:
        CheckpointError: not a checkpoint folder, or not a JSON object.
        ResourceError: not readable.
    """
    _check_folder(folder)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _without_config(folder) from None
    except PermissionError:
        raise _no_permission(path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON.",
            why=str(error),
            hint="Download the file again.",
            code="config_unreadable",
        ) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object.", code="config_unreadable")
    return config


def _check_folder(folder: Path) -> None:
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
        if is_folder:
            next(folder.iterdir(), None)
    except PermissionError:
        raise _no_permission(folder) from None
    if not exists:
        raise CheckpointError(
            f"There is no folder {folder}.",
            hint="Give the folder that holds config.json, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct.",
            code="source_missing",
        )
    if not is_folder:
        raise CheckpointError(
            f"{folder} is a file, not a checkpoint folder.",
            why=_file_kind(folder),
            hint=_FOLDER_HINT,
            code="source_not_a_folder",
        )


_FOLDER_HINT = "Give the folder that holds config.json and the *.safetensors files."


def _file_kind(path: Path) -> str:
    if path.suffix == ".gguf":
        return "GGUF is the llama.cpp format; convert-trt reads Hugging Face folders."
    return "A Hugging Face checkpoint is a folder." if path.suffix == ".safetensors" else ""


def _no_permission(path: Path) -> ResourceError:
    return ResourceError(
        f"{path} cannot be read.",
        why="Permission denied.",
        hint=f"Give your user read access: chmod -R u+rX {path}",
        code="permission",
    )


def _without_config(folder: Path) -> CheckpointError:
    if (folder / "ew.json").is_file():
        return CheckpointError(
            f"{folder} is already a package.",
            why="It holds ew.json, the manifest that convert-trt writes.",
            hint="Use it as model_path in deploy/config.json, or convert its Hugging Face source.",
            code="source_is_package",
        )
    if (folder / "adapter_config.json").is_file():
        return CheckpointError(
            f"{folder} is a LoRA adapter, not a whole model.",
            why="It holds adapter_config.json and no config.json.",
            hint="Merge the adapter into its base model first (peft: merge_and_unload, save_pretrained).",
            code="source_is_adapter",
        )
    return CheckpointError(
        f"{folder} is not a Hugging Face checkpoint.",
        why="It has no config.json.",
        hint=_FOLDER_HINT,
        code="not_a_checkpoint",
    )


def _refuse_trtllm(folder: Path, config: dict[str, Any]) -> None:
    if "pretrained_config" in config and "build_config" in config:
        raise CheckpointError(
            f"{folder} is a TensorRT-LLM engine, not a Hugging Face checkpoint.",
            why="Its config.json holds pretrained_config and build_config.",
            hint="Give the Hugging Face folder the engine was made from.",
            code="source_is_engine",
        )
    if "architecture" in config and "architectures" not in config:
        raise CheckpointError(
            f"{folder} is a TensorRT-LLM checkpoint already, not a Hugging Face one.",
            why="Its config.json has 'architecture' and no 'architectures'.",
            hint=f"Build it: trtllm-build --checkpoint_dir {folder}; or give its Hugging Face source.",
            code="source_is_trtllm_checkpoint",
        )


def find_weights(folder: Path, *, allow_pickle: bool = False) -> tuple[WeightFile, ...]:
    """The weight files of a folder: safetensors, or pickles where they are allowed."""
    every = sorted(folder.glob("*.safetensors"))
    safetensors = [path for path in every if not path.name.startswith("consolidated")] or every
    pickles = sorted(path for path in folder.iterdir() if _is_pickled_weights(path))
    if not safetensors and not pickles:
        raise CheckpointError(
            f"{folder} holds no weights.",
            why="There is no *.safetensors file beside its config.json.",
            hint="Download the whole model; with git, run: git lfs pull",
            code="weights_missing",
        )
    if not safetensors and not allow_pickle:
        raise _pickle_refused(folder, pickles)
    files = safetensors or pickles
    _refuse_lfs_pointers(files)
    return tuple(_weight_file(path) for path in files)


def _is_pickled_weights(path: Path) -> bool:
    named_weights = path.name.startswith(("pytorch_model", "consolidated", "model"))
    return path.suffix in PICKLE_SUFFIXES and named_weights


def _weight_file(path: Path) -> WeightFile:
    status = path.stat()
    return WeightFile(path.name, status.st_size, status.st_mtime_ns)


def _pickle_refused(folder: Path, pickles: list[Path]) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds its weights as pickle ({pickles[0].name}), which can run code when it is loaded.",
        why="There is no *.safetensors file.",
        hint="Convert the files with safetensors, or, if you trust their maker, repeat with --allow-pickle.",
        code="pickle_refused",
    )


def _refuse_lfs_pointers(files: Iterable[Path]) -> None:
    for path in files:
        try:
            with path.open("rb") as file:
                start = file.read(len(LFS_MARK))
        except PermissionError:
            raise _no_permission(path) from None
        if start == LFS_MARK:
            raise CheckpointError(
                f"{path} is a Git LFS pointer, not the weights.",
                why="The repository was cloned without Git LFS.",
                hint=f"In {path.parent} run: git lfs install && git lfs pull",
                code="git_lfs_pointer",
            )


def _read_headers(folder: Path, weights: tuple[WeightFile, ...]) -> TensorFolder | None:
    """The checked headers of all safetensors; None for pickles, whose contents show only on reading."""
    return TensorFolder(folder) if weights and weights[0].name.endswith(".safetensors") else None


def _source_dtype(config: dict[str, Any], tensors: TensorFolder | None) -> tuple[str, str]:
    if tensors is not None:
        sizes: dict[str, int] = {}
        for name in tensors:
            info = tensors.info(name)
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
        largest = max(sizes, key=lambda dtype: sizes[dtype])
        return _dtype_name(
            largest
        ), f"{sizes[largest] / sum(sizes.values()):.0%} of the weight bytes are {largest}"
    named = str(config.get("torch_dtype") or config.get("dtype") or "float32")
    return named, "torch_dtype of config.json"


def _dtype_name(stored: str) -> str:
    return {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}.get(stored, stored)


def _architecture(config: dict[str, Any]) -> str:
    architectures = config.get("architectures")
    return str(architectures[0]) if architectures else str(config.get("model_type", "unknown"))


def source_digest(folder: Path, weights: Iterable[WeightFile]) -> str:
    """SHA-256 over config.json, the index, and each weight file's name, size, start and spread samples.

    It names the source and finds candidates for reuse; equal weights are then proven by modification time
    or byte by byte, never by samples alone.
    """
    digest = hashlib.sha256()
    for name in ("config.json", INDEX_NAME, "hf_quant_config.json"):
        path = folder / name
        digest.update(f"{name}:".encode() + (path.read_bytes() if path.is_file() else b"") + b"\n")
    for file in weights:
        digest.update(f"{file.name}:{file.bytes}:".encode())
        digest.update(_samples(folder / file.name, file.bytes))
    return digest.hexdigest()


def _samples(path: Path, size: int) -> bytes:
    step = max(SAMPLE_BYTES, size // SAMPLES)
    with path.open("rb") as file:
        pieces = []
        for offset in range(0, size, step):
            file.seek(offset)
            pieces.append(file.read(SAMPLE_BYTES))
    return hashlib.sha256(b"".join(pieces)).digest()
