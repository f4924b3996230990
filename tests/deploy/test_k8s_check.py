"""`ew k8s check`: Kubernetes' own schemas, structure of custom resources, and the two verbs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from cli.app import main
from common.errors import EnvironmentProblem, UsageError
from common.paths import SOURCE_ROOT
from runtime.k8s import build, schemas
from runtime.k8s.check import check, examine
from runtime.k8s.manifests import Manifests
from runtime.k8s.overlay import TREE
from runtime.k8s.pool import OVERLAYS
from tests.deploy.k8s import REMOVED, added, changed, overlay
from tests.deploy.test_k8s_policy import DEPLOYMENT, HPA, LEADER, LWS, POD, SERVER

VALIDATOR = schemas.validator()  # of the development requirements
VERSIONS = schemas.newest_versions(VALIDATOR)


def test_three_versions_are_checked() -> None:
    assert len(VERSIONS) == 3
    numbers = [tuple(map(int, version.split("."))) for version in VERSIONS]
    assert sorted(numbers) == numbers


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_fit_the_schemas_of_the_last_three_versions(name: str) -> None:
    assert examine(overlay(name), VALIDATOR, VERSIONS) == []


@pytest.mark.parametrize("name", ["cpu", "multi-node"])
def test_overlays_fit_the_oldest_version_that_the_guide_names(name: str) -> None:
    guide = (SOURCE_ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    oldest = re.findall(r"Kubernetes (1\.\d+) or later", guide)
    assert len(oldest) == 1
    assert schemas.schema_findings(overlay(name), VALIDATOR, oldest) == []


@pytest.mark.parametrize(
    ("name", "target", "path", "value", "part"),
    [
        ("cpu", DEPLOYMENT, f"{POD}/terminationGracePeriod", 60, "terminationGracePeriod"),
        ("cpu", DEPLOYMENT, f"{SERVER}/ports/http/containerPort", "8080", "integer"),
        ("cpu", HPA, "spec/maxReplicas", REMOVED, "maxReplicas"),
        ("multi-node", LWS, f"{LEADER}/containers/server/livenesProbe", {}, "livenesProbe"),
    ],
)
def test_what_kubernetes_would_refuse_is_found(
    name: str, target: str, path: str, value: Any, part: str
) -> None:
    found = schemas.schema_findings(changed(name, target, path, value), VALIDATOR, VERSIONS)
    assert len(found) == 1
    assert part in found[0].message and all(version in found[0].message for version in VERSIONS)


def test_unknown_kinds_are_named() -> None:
    other = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "x"}}
    found = schemas.schema_findings(added("cpu", other), VALIDATOR, VERSIONS[-1:])
    assert [(finding.rule, finding.object) for finding in found] == [("unknown-kind", "Thing/x")]


@pytest.mark.parametrize(
    ("target", "path", "value", "part"),
    [
        (LWS, "spec/leaderWorkerTemplate/size", "2", "size"),
        (LWS, "spec/leaderWorkerTemplate/workerTemplate", REMOVED, "workerTemplate is missing"),
        (LWS, "spec/leaderWorkerTemplate/restartPolicy", "Always", "RecreateGroupOnPodRestart"),
        (LWS, "spec/template", {}, "not a field"),
        ("ScaledObject/ew", "spec/triggers", {}, "must be a list"),
        ("ScaledObject/ew", "spec/triggers/0/metricType", "Average", "metricType"),
        ("ScaledObject/ew", "spec/maxReplicas", 3, "not a field"),
        ("PodMonitor/ew", "spec/endpoints", [], "not a field"),
        ("PodMonitor/ew", "spec/podMetricsEndpoints/0/port", 8080, "no str"),
        ("PodMonitor/ew", "spec", "x", "must be a map"),
    ],
)
def test_the_structure_of_custom_resources_is_checked(target: str, path: str, value: Any, part: str) -> None:
    found = schemas.structure_findings(changed("multi-node", target, path, value))
    assert found and all(finding.rule == "structure" for finding in found)
    assert any(part in finding.message for finding in found)


# --- the verbs ---------------------------------------------------------------------------------------------


def ew(*arguments: object, stdin: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    return result.exit_code, result.output


def test_render_then_check(tmp_path: Path) -> None:
    example = TREE / "examples" / "single-gpu"
    code, text = ew(
        *("k8s", "render", "--config", example / "deploy.json", "--values", example / "values.txt"),
        *("--set", f"plan_from={example / 'model'}", "--output", tmp_path / "out", "--json"),
    )
    facts = json.loads(text)
    assert code == 0 and facts["overlay"] == "single-gpu"
    code, text = ew("k8s", "check", facts["folder"], "--json")
    document = json.loads(text)
    assert (code, document["failed"]) == (0, False)
    assert document["checks"]["schemas"].startswith("Kubernetes ")


def test_check_fails_on_a_mistake_and_says_which(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    wrong = changed("cpu", DEPLOYMENT, f"{POD}/terminationGracePeriodSeconds", 30)
    path.write_text(yaml.safe_dump_all(wrong.objects))
    code, text = ew("k8s", "check", path)
    assert code == 1 and "[grace]" in text and "1 findings" in text
    code, text = ew("k8s", "check", path, "--ignore", "grace")
    assert code == 0 and "without grace" in text


def test_check_reads_standard_input() -> None:
    code, text = ew("k8s", "check", "-", stdin=yaml.safe_dump_all(overlay("cpu").objects))
    assert code == 0, text


def test_render_prints_what_a_cluster_takes() -> None:
    example = TREE / "examples" / "cpu"
    options = ("--config", example / "deploy.json", "--set", f"plan_from={example / 'model'}")
    code, text = ew("k8s", "render", *options, "--set", "source=org/model")
    assert code == 0
    assert {item["kind"] for item in yaml.safe_load_all(text)} >= {"Deployment", "Job", "Service"}
    code, text = ew("k8s", "render", *options, "--set", "source=org/model", "--json")
    assert {item["kind"] for item in json.loads(text)["objects"]} >= {"Deployment", "Job", "Service"}


def test_a_gpu_that_the_engine_has_no_use_for_is_told(tmp_path: Path) -> None:
    example = TREE / "examples" / "cpu"
    code, text = ew(
        *("k8s", "render", "--config", example / "deploy.json", "--set", f"plan_from={example / 'model'}"),
        *("--set", "source=org/model", "--set", "gpu=L40S", "--output", tmp_path / "out"),
    )
    assert code == 0 and "gpu=L40S has no use here" in text


def test_values_are_listed() -> None:
    code, text = ew("k8s", "values", "--json")
    assert code == 0 and {"gpu", "source", "drain_seconds"} <= set(json.loads(text))


@pytest.mark.parametrize("text", ["a: [", "just text", "[1]"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    code, told = ew("k8s", "check", tmp_path / "x.yaml")
    assert code == 2 and "Error" in told


def test_an_empty_rendering_is_not_right() -> None:
    code, told = ew("k8s", "check", "-", stdin="")
    assert code == 2 and "Standard input holds no objects" in told


def test_an_empty_folder_has_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        check([str(tmp_path)])
    assert refused.value.code == "nothing_to_check"


def test_an_unknown_rule_cannot_be_ignored() -> None:
    with pytest.raises(UsageError):
        check([str(TREE)], ignore=frozenset({"grase"}))


def test_without_kubectl_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_kubectl", lambda: None)
    with pytest.raises(EnvironmentProblem) as missing:
        check([str(TREE)])
    assert missing.value.code == "kubectl_missing"


def test_a_broken_overlay_is_refused_with_kustomizes_words(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [absent.yaml]\n")
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        check([str(tmp_path)])


def test_without_schemas_it_says_that_they_were_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "validator", lambda: None)
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(overlay("cpu").objects))
    result = check([str(path)])
    assert not result.failed and result.checks["schemas"].startswith("not run")


def test_a_rule_tells_what_it_cannot_read_and_what_it_found_before() -> None:
    first = changed("cpu", DEPLOYMENT, f"{SERVER}/livenessProbe/httpGet/path", "/")
    second = changed("cpu", DEPLOYMENT, f"{SERVER}/args", ["start", "--port", "a"])
    found = examine(Manifests((*first.objects, *second.objects)), VALIDATOR, VERSIONS)
    wrong, unread = (one for one in found if one.rule == "probes")
    assert wrong.message.startswith("livenessProbe has to ask")
    assert (unread.object, "a field is not of its kind" in unread.message) == ("the manifests", True)


@pytest.mark.parametrize(("path", "value"), [(f"{POD}/volumes", "none"), ("metadata/labels", 7)])
def test_a_field_of_another_kind_ends_no_check(path: str, value: Any) -> None:
    found = examine(changed("cpu", DEPLOYMENT, path, value), VALIDATOR, VERSIONS)
    assert "schema" in {one.rule for one in found}
