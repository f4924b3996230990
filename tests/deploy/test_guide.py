"""The guide can be followed: commands exist, numbers are the plan's, both languages say the same."""

from __future__ import annotations

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from builder.convert import convert
from builder.request import ConvertRequest
from cli.app import main
from common.paths import SOURCE_ROOT

DOCS = SOURCE_ROOT / "docs"
GUIDES = [DOCS / "deploy.md", DOCS / "deploy.zh-CN.md"]
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
# As in the models' own config.json files.
SHAPES = {
    "Qwen2.5-7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "Qwen2.5-72B": {
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


def text_of(guide: Path) -> str:
    return guide.read_text(encoding="utf-8")


def commands(guide: Path) -> list[str]:
    """Every command: indented lines, and what stands in backquotes and begins like one."""
    indented = re.findall(r"^    (\S.*)$", text_of(guide), re.MULTILINE)
    inline = re.findall(r"`((?:\./ew|python|promtool|docker|kubectl) [^`]+)`", text_of(guide))
    return [*indented, *inline]


def sizing_rows(guide: Path) -> list[list[str]]:
    rows = [
        line.strip("| ").split(" | ") for line in text_of(guide).splitlines() if line.startswith("| Qwen")
    ]
    assert rows
    return rows


@pytest.mark.parametrize("line", sorted({line for guide in GUIDES for line in commands(guide)}))
def test_every_command_exists(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "./ew":
        parse(main, words[1:])
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), line
    elif words[0] == "promtool":
        assert (SOURCE_ROOT / words[3]).is_file()
    else:
        assert words[:3] == ["kubectl", "apply", "-k"]


def parse(command: click.Command, words: list[str]) -> None:
    """Read the words as `ew` would, without running anything; an unknown verb, option or value raises."""
    if isinstance(command, click.Group):
        chosen = command.get_command(click.Context(command), words[0])
        assert chosen is not None, words
        parse(chosen, words[1:])
    elif words:  # a verb alone only names it
        command.make_context(command.name or "ew", list(words))


def test_both_languages_give_the_same_commands_and_tables() -> None:
    english, chinese = GUIDES
    assert commands(english) == commands(chinese)
    assert sizing_rows(english) == sizing_rows(chinese)
    alerts = [re.findall(r"^\| (`Ew\w+`) ", text_of(guide), re.MULTILINE) for guide in GUIDES]
    assert alerts[0] == alerts[1]


@pytest.mark.parametrize("row", sizing_rows(GUIDES[0]), ids=lambda row: "-".join(row[:3]))
def test_sizes_are_those_of_the_plan(row: list[str], tmp_path: Path) -> None:
    model, gpu, gpus, *figures = row
    (tmp_path / "config.json").write_text(json.dumps({**QWEN, **SHAPES[model]}))
    request = ConvertRequest(
        str(tmp_path), Path(), dtype="bfloat16", gpu=gpu, tp_size=int(gpus), stage="plan"
    )
    assert figures == shown(convert(request).plan.as_dict())


def shown(plan: dict[str, Any]) -> list[str]:
    """The plan's figures as the table writes them."""
    values = {figure["name"]: figure["value"] for figure in plan["figures"]}
    return [
        f"{values['weights_per_rank'] / 2**30:.1f}",
        f"{values['kv_cache'] / 2**30:.1f}",
        f"{values['kv_cache_tokens']:,}",
        str(values["full_length_requests"]),
        str(values["recommended_max_batch_size"]),
    ]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_objectives_are_those_of_the_rules(guide: Path) -> None:
    source = SOURCE_ROOT / "deploy" / "prometheus" / "objectives.yml"
    objectives = yaml.safe_load(source.read_text(encoding="utf-8"))["objectives"]
    rows = dict(re.findall(r"^\| `([a-z]+)` \| .*?([\d.]+) %", text_of(guide), re.MULTILINE))
    assert rows == {name: f"{100 * fields['target']:g}" for name, fields in objectives.items()}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_the_rollout_is_told_as_it_was_measured(guide: Path) -> None:
    results = SOURCE_ROOT / "benchmarks" / "results"
    measured = json.loads((results / "rollout-cpu.json").read_text(encoding="utf-8"))
    without_wait = json.loads((results / "rollout-cpu-no-wait.json").read_text(encoding="utf-8"))
    told = next(line for line in text_of(guide).splitlines() if "rollout-cpu.json" in line)
    numbers = [int(number.replace(",", "")) for number in re.findall(r"(?<![\w.-])\d[\d,]*(?![\w-])", told)]
    counts = [measured[name] for name in ("requests", "lost", "held_streams", "ended_after_their_full_grace")]
    assert [*counts, int(measured["settings"]["drain"])] == numbers[1:6]
    assert measured["requests"] >= 2000 and measured["faults"] == []
    assert without_wait["lost"] > 0


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_the_rollout_behind_a_balancer_of_connections_is_told_as_it_was_measured(guide: Path) -> None:
    results = SOURCE_ROOT / "benchmarks" / "results"
    told = next(line for line in text_of(guide).splitlines() if "rollout-cpu-tcp.json" in line)
    kept, cut = (
        json.loads((results / f"rollout-cpu-tcp{name}.json").read_text(encoding="utf-8"))
        for name in ("", "-no-lame-duck")
    )
    counts = [str(run[name]) for run in (kept, cut) for name in ("requests", "lost")]
    assert set(counts) <= set(re.findall(r"\d+", told))
    assert kept["lost"] == 0 < cut["lost"]
    assert kept["requests"] >= 700 and kept["faults"] == cut["faults"] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_links_lead_to_files(guide: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text_of(guide)) if "://" not in target]
    assert targets
    assert [target for target in targets if not (guide.parent / target).exists()] == []
