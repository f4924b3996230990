"""models.ID.triton: types, allowed values, nearest matches, and the published schema."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from common.config import parse_config
from common.errors import ConfigError
from common.paths import SOURCE_ROOT
from common.triton_settings import TritonSettings

SCRIPT = SOURCE_ROOT / "scripts" / "config_schema.py"


def with_triton(**settings: Any) -> Any:
    return {"models": {"m": {"engine": "cpu", "model_path": "models/m", "triton": settings}}}


def test_the_committed_schema_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_setting_has_a_line_of_help() -> None:
    for name, field in TritonSettings.model_fields.items():
        assert field.description and field.description.endswith("."), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_queu_size": 3}, "models.m.triton.max_queu_size: unknown key, did you mean 'max_queue_size'?"),
        (
            {"kv_cache_free_gpu_mem_fraction": 1.5},
            "models.m.triton.kv_cache_free_gpu_mem_fraction: found 1.5",
        ),
        ({"batch_scheduler_policy": "fast"}, "'guaranteed_no_evict' or 'max_utilization'"),
        ({"enable_kv_cache_reuse": "yes please"}, "models.m.triton.enable_kv_cache_reuse: found"),
        ({"gpu_device_ids": "0:1"}, "models.m.triton.gpu_device_ids: found"),
        ({"medusa_choices": "[0]"}, "models.m.triton.medusa_choices: found"),
        ({"decoding_mode": "lookahead"}, "lookahead_window_size"),
        ({"lookahead_window_size": 3}, "must be set together"),
        ({"guided_decoding_backend": "xgrammar"}, "xgrammar_tokenizer_info_path"),
        ({"decoding_mode": "beam_search"}, "max_beam_width"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(with_triton(**settings))
    assert message in caught.value.what


def test_good_settings_are_kept() -> None:
    settings = {
        "decoding_mode": "lookahead",
        "lookahead_window_size": 4,
        "lookahead_ngram_size": 3,
        "lookahead_verification_set_size": 4,
        "gpu_device_ids": "0,1;2,3",
    }
    triton = parse_config(with_triton(**settings)).models["m"].triton
    assert {name: getattr(triton, name) for name in settings} == settings
