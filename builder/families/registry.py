"""Which family a model belongs to, from its config.json alone."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builder.families import configs, maps
from builder.families.layout import Layout
from common.errors import CheckpointError, UnsupportedModelError, UsageError


@dataclass(frozen=True)
class Family:
    """One weight map with its configuration rule.

    Args:
        name: how the family is called here.
        architectures: its names in config.json's `architectures`.
        model_types: what `--model-type` may say about it, and the versions that name fixes ('' for none).
        version: its version where there is only one.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: Mapping[str, str]
    version: str
    weights: maps.WeightMap
    make_config: configs.ConfigMaker


@dataclass(frozen=True)
class Detection:
    """A family and the evidence. `version` tells apart what shares a weight map (v2_7b, glm4, ...)."""

    family: Family
    version: str
    reason: str

    @property
    def name(self) -> str:
        return self.family.name


def _one_version(
    name: str, architecture: str, also: tuple[str, ...], weights: maps.WeightMap, make: configs.ConfigMaker
) -> Family:
    """A family of one architecture; `also` are other names that users call it by."""
    return Family(name, (architecture,), dict.fromkeys((name, *also), ""), name, weights, make)


LLAMA, QWEN = configs.llama_config, configs.qwen_config
FAMILIES = (
    _one_version("llama", "LlamaForCausalLM", ("yi",), maps.LLAMA, LLAMA),
    _one_version("mistral", "MistralForCausalLM", (), maps.LLAMA, LLAMA),
    _one_version("mixtral", "MixtralForCausalLM", (), maps.MIXTRAL, LLAMA),
    _one_version("qwen", "QWenLMHeadModel", ("qwen1",), maps.QWEN1, QWEN),
    _one_version("qwen2", "Qwen2ForCausalLM", ("qwen", "qwen1.5", "qwen2.5"), maps.LLAMA, QWEN),
    _one_version("qwen2_moe", "Qwen2MoeForCausalLM", ("qwen",), maps.QWEN2_MOE, QWEN),
    _one_version("qwen3", "Qwen3ForCausalLM", ("qwen",), maps.QWEN3, QWEN),
    _one_version("qwen3_moe", "Qwen3MoeForCausalLM", ("qwen",), maps.QWEN3_MOE, QWEN),
    Family(
        "baichuan",
        ("BaichuanForCausalLM", "BaiChuanForCausalLM"),
        {"baichuan": "", "baichuan1": "v1", "baichuan2": "v2"},
        "",
        maps.BAICHUAN,
        configs.baichuan_config,
    ),
    Family(
        "chatglm",
        ("ChatGLMModel", "ChatGLMForConditionalGeneration", "ChatGLMForCausalLM"),
        {"chatglm": "", "chatglm2": "chatglm2", "chatglm3": "chatglm3", "glm4": "glm4"},
        "",
        maps.CHATGLM,
        configs.chatglm_config,
    ),
    _one_version("internlm2", "InternLM2ForCausalLM", (), maps.INTERNLM2, configs.internlm2_config),
)
BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}
MODEL_TYPES = tuple(sorted({name for family in FAMILIES for name in family.model_types}))


def _architecture(hf: Mapping[str, Any]) -> str:
    names = hf.get("architectures")
    if isinstance(names, list) and names:
        return str(names[0])
    if "architecture" in hf:
        raise CheckpointError(
            "This config.json belongs to a TensorRT-LLM checkpoint, not to a Hugging Face model.",
            why="It has 'architecture' and no 'architectures'.",
            hint="Give the folder that was converted, or build an engine from this one.",
            code="already_converted",
        )
    raise CheckpointError(
        "config.json has no 'architectures'.",
        why="It says which model the weights belong to.",
        hint="Use the config.json that was published with the weights.",
        code="config_field_missing",
    )


def _unsupported(architecture: str) -> UnsupportedModelError:
    known = sorted(BY_ARCHITECTURE)
    near = difflib.get_close_matches(architecture, known, n=1, cutoff=0.0)[0]
    return UnsupportedModelError(
        f"Architecture {architecture!r} cannot be converted.",
        why=f"The nearest supported one is {near}; all: {', '.join(known)}.",
        hint="TensorRT-LLM 1.3 and later load many other models without conversion: --runtime pytorch",
    )


def _check_quantized(hf: Mapping[str, Any]) -> None:
    settings = hf.get("quantization_config")
    if settings:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise UnsupportedModelError(
            f"The weights are already quantized ({method or 'unknown method'}).",
            why="Only float16, bfloat16 and float32 weights can be converted on a CPU.",
            hint="Use the unquantized model, or --runtime pytorch, which loads quantized weights.",
            code="prequantized",
        )


def _version(family: Family, hf: Mapping[str, Any], model_type: str | None) -> tuple[str, str]:
    wanted = family.model_types.get(model_type or "", "")
    if family.name == "baichuan":
        version, reason = configs.baichuan_version(hf)
        if wanted and not version.startswith(wanted):
            return f"{wanted}_{version.split('_')[1]}", f"--model-type is {model_type}"
        return version, reason
    if family.name == "chatglm":
        version, reason = configs.chatglm_version(hf)
        return (wanted, f"--model-type is {model_type}") if wanted else (version, reason)
    return family.version, ""


def detect(hf_config: Mapping[str, Any], model_type: str | None = None) -> Detection:
    """The family of a model.

    Args:
        hf_config: its config.json.
        model_type: what the user says it is, one of MODEL_TYPES.

    Raises:
        UsageError: `model_type` is unknown or contradicts the config.
        UnsupportedModelError: no family here, or weights that cannot be converted; names the nearest.
    """
    if model_type is not None and model_type not in MODEL_TYPES:
        raise UsageError(
            f"Unknown model type {model_type!r}.",
            hint=f"Use one of: {', '.join(MODEL_TYPES)}.",
            code="model_type",
        )
    architecture = _architecture(hf_config)
    family = BY_ARCHITECTURE.get(architecture)
    if family is None:
        raise _unsupported(architecture)
    if model_type is not None and model_type not in family.model_types:
        raise UsageError(
            f"--model-type {model_type} contradicts config.json.",
            why=f"Its architecture {architecture} is of the family {family.name}.",
            hint=f"Leave --model-type out, or use {' or '.join(family.model_types)}.",
            code="model_type",
        )
    _check_quantized(hf_config)
    version, why = _version(family, hf_config, model_type)
    reason = f"architectures[0] is {architecture}" + (f"; {version}: {why}" if why else "")
    return Detection(family, version, reason)


def trtllm_config(
    hf_config: Mapping[str, Any], layout: Layout, model_type: str | None = None
) -> dict[str, Any]:
    """config.json of the TensorRT-LLM checkpoint, field for field what upstream's 1.x converters write."""
    found = detect(hf_config, model_type)
    return found.family.make_config(hf_config, layout, found.version)


def weight_map(config: Mapping[str, Any]) -> maps.WeightMap:
    """The weight map of a TensorRT-LLM checkpoint with this config.json."""
    family = BY_ARCHITECTURE.get(str(config.get("architecture")))
    if family is None:
        raise _unsupported(str(config.get("architecture")))
    return family.weights
