"""Whatever stands in config.json: a plan, or an error that names the field; never a crash."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builder.inspect import read_config
from builder.plan import Plan
from common.errors import CheckpointError, EwError
from tests.builder.golden import GOLDEN
from tests.builder.made import run

CONFIGS = {
    path.parent.parent.name: json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*/hf/config.json"))
}
MORE_FIELDS = ["rope_scaling", "quantization_config", "head_dim", "num_key_value_heads", "rope_parameters"]
VALUES = st.sampled_from([None, 0, -1, 7, 10**12, 1.5, True, "x", "", "float16", [], [None], {}, {"a": 1}])


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    config = dict(draw(st.sampled_from(list(CONFIGS.values()))))
    for name in draw(st.lists(st.sampled_from([*config, *MORE_FIELDS]), min_size=1, max_size=3)):
        config[name] = draw(VALUES)
    return config


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=damaged(), runtime=st.sampled_from(["auto", "engine", "pytorch"]))
def test_any_config_is_planned_or_refused(config: dict[str, Any], runtime: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            plan = run(Path(folder), Path(folder) / "out", stage="plan", runtime=runtime).plan
        except EwError as error:
            assert error.what
            return
    assert isinstance(plan, Plan)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("hidden_size", "64", "must be a whole number"),
        ("num_hidden_layers", True, "must be a whole number"),
        ("rope_theta", "10000", "must be a number"),
        ("rope_scaling", "linear", "must be an object"),
        ("model_type", 7, "must be text"),
        ("architectures", "LlamaForCausalLM", "must be a list of names"),
    ],
)
def test_wrong_type_names_the_field(field: str, value: object, text: str, source: Path) -> None:
    config = CONFIGS["llama-sharded"] | {field: value}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{field} is .*{text}") as caught:
        read_config(source)
    assert caught.value.code == "config_field_wrong"
