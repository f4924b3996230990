"""The values of a cluster: what --set takes, what it refuses, and where it ends up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import parse_config
from common.errors import UsageError
from runtime.k8s.build import kustomize
from runtime.k8s.manifests import Manifests, arguments_of, at, option, parse_manifests
from runtime.k8s.overlay import render_overlay
from runtime.k8s.tree import write_tree
from runtime.k8s.values import parse_values, read_values, set_names
from tests.deploy.k8s import HF, config, values


@pytest.mark.parametrize(
    "setting",
    [
        "gpu",
        "gpus=L40S",
        "image=ew",
        "image=ew:latest",
        "image=a b:1",
        "memory=16",
        "cpu=500m",
        "namespace=Not_A_Name",
        "autoscaler=vpa",
        "kv_cache_target=1.5",
        "pre_stop_seconds=1",
        "sources=x",
    ],
)
def test_bad_values_are_refused(setting: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_values((setting,))
    assert refused.value.code == "bad_set"


def test_a_misspelled_value_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="min_replica") as refused:
        parse_values(("min_replica=3",))
    assert "min_replicas" in refused.value.hint


@pytest.mark.parametrize("setting", ["source.other=x/y", "source=x/y"])
def test_sources_belong_to_models(setting: str) -> None:
    two = {"m": config().models["m"].model_dump(), "n": config().models["m"].model_dump()}
    with pytest.raises(UsageError) as refused:
        render_overlay(parse_config({"models": two}), parse_values((setting, "gpu=L40S")))
    assert refused.value.code == "bad_set"


def test_values_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "pool.txt").write_text("# the L40S pool\n\ngpu=L40S\nstorage_class=fast\n")
    found = parse_values((*read_values(tmp_path / "pool.txt"), "gpu=H100"))
    assert (found.gpu, found.storage_class) == ("H100", "fast")
    with pytest.raises(UsageError):
        read_values(tmp_path / "absent.txt")


def test_every_value_is_described() -> None:
    assert all(set_names().values())


def test_values_reach_the_manifests(tmp_path: Path) -> None:
    settings = (
        *("namespace=llm", "image=registry.example.com:5000/team/ew:1.2", "pull_secret=pull"),
        *("keys_secret=my-keys", "hub_secret=my-hub", "storage=77Gi", "storage_class=fast", "host=::"),
        *("min_replicas=3", "max_replicas=9", "waiting_target=7", "kv_cache_target=0.5", "cpu=11", "shm=6Gi"),
    )
    built = _built(render_overlay(config(), values(*settings)), tmp_path)
    text = yaml.safe_dump_all(built.objects)
    for expected in (
        *(
            "namespace: llm",
            "image: registry.example.com:5000/team/ew:1.2",
            "name: pull",
            "my-keys",
            "my-hub",
        ),
        *("storage: 77Gi", "storageClassName: fast", "minReplicas: 3", "maxReplicas: 9"),
        *("averageValue: '7'", "averageValue: 500m", "cpu: '11'", "sizeLimit: 6Gi"),
    ):
        assert expected in text, expected
    assert all(at(item, "metadata", "namespace") in ("llm", None) for item in built.objects)


def _built(rendered: Any, folder: Path) -> Manifests:
    write_tree(rendered, folder)
    return parse_manifests(kustomize(folder / "overlays" / rendered.pool.overlay), "built")


@pytest.mark.parametrize(
    ("settings", "kinds", "absent"),
    [
        (("autoscaler=keda",), {"ScaledObject", "PodMonitor"}, {"HorizontalPodAutoscaler"}),
        (("autoscaler=none",), {"PodMonitor"}, {"HorizontalPodAutoscaler", "ScaledObject"}),
        (("monitor=service",), {"ServiceMonitor", "HorizontalPodAutoscaler"}, {"PodMonitor"}),
        (("monitor=none",), {"HorizontalPodAutoscaler"}, {"PodMonitor", "ServiceMonitor"}),
    ],
)
def test_options_choose_components(
    tmp_path: Path, settings: tuple[str, ...], kinds: set[str], absent: set[str]
) -> None:
    built = _built(render_overlay(config(), values(*settings)), tmp_path)
    found = {item["kind"] for item in built.objects}
    assert kinds <= found and not absent & found
    replicas = [at(item, "spec", "replicas") for item in built.of_kind("Deployment")]
    assert replicas == [2 if "autoscaler=none" in settings else None]


def test_several_models_get_a_job_each(tmp_path: Path) -> None:
    entry = config().models["m"].model_dump()
    document = {"models": {"m": entry, "Other_Model.v2": {**entry, "model_path": "models/other"}}}
    settings = (f"plan_from={HF}", "source.m=org/a", "source.Other_Model.v2=org/b", "gpu=L40S")
    built = _built(render_overlay(parse_config(document), parse_values(settings)), tmp_path)
    models = {option(arguments_of(item["spec"]["template"]["spec"]["containers"][0]), "--model")
              for item in built.of_kind("Job")}  # fmt: skip
    assert models == {"org/a", "org/b"}
