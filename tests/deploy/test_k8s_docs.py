"""docs/kubernetes.md in both languages: rules, values, commands, numbers and links that are true."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from cli.app import main
from common.paths import SOURCE_ROOT
from runtime.k8s.multinode import SSH
from runtime.k8s.policy import RULES
from runtime.k8s.values import set_names
from tests.deploy.k8s import overlay

PAGES = {
    name: (SOURCE_ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("kubernetes.md", "kubernetes.zh-CN.md")
}
TITLES = {rule.id: rule.title for rule in RULES.values()}


@pytest.mark.parametrize("page", PAGES)
def test_every_rule_is_listed_once(page: str) -> None:
    listed = re.findall(r"^\| `([a-z-]+)` \| [^|]+ \|$", PAGES[page], re.MULTILINE)
    assert sorted(listed) == sorted(RULES)


def test_titles_are_those_of_the_rules() -> None:
    assert all(f"| `{rule}` | {title} |" in PAGES["kubernetes.md"] for rule, title in TITLES.items())


@pytest.mark.parametrize("page", PAGES)
def test_values_exist(page: str) -> None:
    text = PAGES[page]
    section = re.split(r"^## (?:Values|参数)$", text, flags=re.MULTILINE)[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    names = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert {"source", "gpu", "drain_seconds", "min_replicas"} <= names
    assert names | set(re.findall(r"--set ([a-z_]+)=", text)) <= set(set_names())


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_ones_that_ew_takes(page: str) -> None:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", PAGES[page], re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line)[1:] for line in blocks.splitlines() if line.startswith("./ew ")]
    assert len(lines) == 3
    for line in lines:
        verb, rest = main.get_command(click.Context(main), line[0]), line[1:]
        while isinstance(verb, click.Group):
            verb, rest = verb.get_command(click.Context(verb), rest[0]), rest[1:]
        assert verb is not None
        verb.make_context(line[0], rest)


@pytest.mark.parametrize("page", PAGES)
def test_secrets_have_the_keys_that_pods_read(page: str) -> None:
    made = re.findall(r"create secret generic (\S+)(.*?)(?:\n[^ ]|\n\n|```)", PAGES[page], re.DOTALL)
    keys = {name: re.findall(r"--from-(?:file|literal)=([\w.-]+)", rest) for name, rest in made}
    assert keys == {
        "ew-keys": ["keys.json"],
        "ew-hub": ["HF_TOKEN"],
        "ew-ssh": ["ssh-privatekey", "authorized_keys", "known_hosts"],
    }
    scripts = str([item["data"] for item in overlay("multi-node").of_kind("ConfigMap")])
    assert all(f"{SSH}/{key}" in scripts for key in keys["ew-ssh"])


@pytest.mark.parametrize("page", PAGES)
def test_stated_numbers_are_the_rendered_ones(page: str) -> None:
    grace = overlay("cpu").servers()[0].spec["terminationGracePeriodSeconds"]
    assert f"{grace} s" in PAGES[page] or f"{grace} 秒" in PAGES[page]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PAGES[page])
    assert links
    assert [link for link in links if not (SOURCE_ROOT / "docs" / link).exists()] == []
