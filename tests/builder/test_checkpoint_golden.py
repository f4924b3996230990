from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from builder.checkpoint import restore_checkpoint, write_checkpoint
from builder.families import trtllm_config
from builder.families.layout import STORED_NAMES
from builder.sources import Source
from common.tensors import cast
from tests.builder.golden import CASES, Case, described


def test_there_are_golden_cases() -> None:
    assert len(CASES) == 80


@pytest.mark.parametrize("case", CASES, ids=str)
def test_config_equals_upstream(case: Case) -> None:
    assert trtllm_config(case.hf_config, case.layout, case.model_type) == case.config


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_byte_equals_upstream_and_comes_back(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "output"
    report = write_checkpoint(case.source, output, case.layout, model_type=case.model_type, digests=True)

    assert {path.name for path in report.files} == {"config.json", *case.tensors}
    assert {name: described(output / name) for name in case.tensors} == case.tensors
    assert json.loads((output / "config.json").read_text()) == case.config
    assert sorted(path.name for path in output.iterdir()) == sorted(report.sha256)
    assert {path.name: sha256(path.read_bytes()).hexdigest() for path in report.files} == report.sha256
    _assert_restored(case, output)


def _assert_restored(case: Case, checkpoint: Path) -> None:
    source = Source(case.source)
    restored = dict(restore_checkpoint(checkpoint))
    normalised = str(case.config.get("model_version")).startswith("v2")
    for name in source:
        info = source.info(name)
        if name.endswith("inv_freq") or (normalised and name == "lm_head.weight"):
            continue
        is_router = restored[name].dtype == "float32"
        expected = "F32" if is_router else STORED_NAMES[case.config["dtype"]]
        assert restored[name].tobytes() == cast(source.view(name), info.dtype, expected).tobytes(), name
