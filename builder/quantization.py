"""--quantization: which schemes there are, where they can be made, and the command that makes them."""

from __future__ import annotations

import shlex
from pathlib import Path

from builder.compat import Era
from builder.manifest import Layout, RuntimeTarget
from builder.prequantized import PreQuantized
from common.errors import UnsupportedModelError, UsageError

# --quantization name -> KV cache type that goes with it
SCHEMES = {"fp8": "fp8", "int4_awq": None, "int8_sq": None, "nvfp4": "fp8", "w4a8_awq": None}
# algorithms of pre-quantized checkpoints -> the scheme with the same weight size and GPU needs
SAME_AS = {
    "FP8": "fp8",
    "FP8_BLOCK_SCALES": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_AWQ": "int4_awq",
    "W4A16_GPTQ": "int4_awq",
    "W4A8_AWQ": "w4a8_awq",
    "W8A8_SQ_PER_CHANNEL": "int8_sq",
}
WEIGHT_ONLY = ("int8", "int4", "int8_wo", "int4_wo")
# where the script lies differs between container releases
FIND_SCRIPT = "find / -path '*/quantization/quantize.py' -print -quit 2>/dev/null"
CALIBRATION_NAMES = ("cnn_dailymail", "lambada")
CALIBRATION_DEFAULT = "abisee/cnn_dailymail"
CALIBRATION_SIZE = 512


def check_quantization(name: str | None, target: RuntimeTarget, found: PreQuantized | None) -> None:
    """Refuse what cannot be: weight-only schemes on a CPU, quantizing twice, engines from quantized weights.

    Raises:
        UsageError: an unknown scheme or one that needs TensorRT-LLM's own library.
        UnsupportedModelError: the weights are already quantized and the engine builder cannot take them.
    """
    if name is not None:
        _check_name(name)
    if found is None:
        return
    if name is not None:
        raise UsageError(
            f"The weights are already quantized ({found.algorithm}).",
            why=found.reason,
            hint="Leave --quantization out, or start from the original weights.",
            code="already_quantized",
        )
    if target.era == "engine":
        raise UnsupportedModelError(
            f"The weights are already quantized ({found.algorithm}); the engine path cannot use them.",
            why=found.reason,
            hint="Use --runtime pytorch, which loads them as they are, or convert the original weights"
            " with --quantization.",
            code="prequantized",
        )


def _check_name(name: str) -> None:
    if name in WEIGHT_ONLY:
        raise UsageError(
            f"Weight-only {name} cannot be made here.",
            why="Its weight layout comes out of TensorRT-LLM's native library, which needs a GPU machine.",
            hint="Use --quantization int4_awq or fp8, which are made in the GPU container.",
            code="weight_only_refused",
        )
    if name not in SCHEMES:
        raise UsageError(
            f"Unknown quantization {name!r}.",
            hint=f"Use one of: {', '.join(SCHEMES)}.",
            code="unknown_quantization",
        )


def check_calibration(folder: Path | None) -> None:
    """ModelOpt picks a data set's column by a part of its path, so the folder's name must say which it is.

    Raises:
        UsageError: the folder is missing or its path names no known data set.
    """
    if folder is None:
        return
    if not folder.is_dir():
        raise UsageError(f"There is no calibration folder {folder}.", code="calibration_missing")
    if not any(name in str(folder.resolve()) for name in CALIBRATION_NAMES):
        raise UsageError(
            f"The calibration folder {folder} has no known data set's name in its path.",
            why="ModelOpt chooses the text column by a part of the path.",
            hint=f"Rename it so that its path contains {' or '.join(CALIBRATION_NAMES)}.",
            code="calibration_name",
        )


def quantize_command(
    name: str, model: str, output: str, layout: Layout, era: Era, *, calibration: str | None = None
) -> str:
    """ModelOpt's shell command in the container: Hugging Face folder in; out comes a quantized TRT-LLM
    checkpoint (engine era) or a quantized Hugging Face folder (PyTorch era)."""
    arguments = ["--model_dir", model, "--output_dir", output]
    arguments += ["--export_format", "tensorrt_llm" if era == "engine" else "hf"]
    arguments += ["--dtype", layout.dtype, "--qformat", name]
    kv_cache = SCHEMES[name]
    if kv_cache:
        arguments += ["--kv_cache_dtype", kv_cache]
    arguments += ["--tp_size", str(layout.tp_size), "--pp_size", str(layout.pp_size)]
    arguments += ["--calib_dataset", calibration or CALIBRATION_DEFAULT]
    arguments += ["--calib_size", str(CALIBRATION_SIZE)]
    return f'python3 "$({FIND_SCRIPT})" {shlex.join(arguments)}'
