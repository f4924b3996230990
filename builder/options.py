"""The options a user adds beside convert-trt's own: for trtllm-build or for tensorrt_llm.LLM, by era."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builder.build_flags import parse_build_options
from builder.llm_args import parse_llm_options
from builder.manifest import RuntimeTarget


def read_options(
    arguments: Sequence[str], target: RuntimeTarget, own_options: Sequence[str] = ()
) -> dict[str, Any]:
    """Check `arguments` against the contract of the target's era.

    Raises:
        UsageError: an unknown option (names the nearest), a removed one, or a bad value.
    """
    if target.era == "engine":
        return dict(parse_build_options(arguments, own_options))
    return parse_llm_options(arguments, target.tensorrt_llm)
