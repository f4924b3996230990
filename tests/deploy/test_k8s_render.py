"""Manifests from a config: the right overlay, numbers that follow from plan and drain, real ew commands."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from cli import k8s
from cli.app import main
from common.config import DeployConfig, parse_config
from common.errors import EwError, ResourceError, UsageError
from common.paths import SOURCE_ROOT
from runtime import teardown
from runtime.k8s import multinode, pods, scaling, sizing
from runtime.k8s.examples import ALERTS, alert_rules, render_example
from runtime.k8s.manifests import Manifests, arguments_of, option
from runtime.k8s.overlay import TREE, render_overlay
from runtime.k8s.pool import OVERLAYS, PRODUCTS, Pool, pool_of
from runtime.k8s.tree import write_tree
from runtime.k8s.values import parse_values
from tests.deploy.k8s import config, overlay, values
from tests.packages import make_package


def patch_of(config_: DeployConfig, *settings: str) -> Any:
    """The server's part of the Deployment's patch, and the pod's."""
    document = yaml.safe_load(render_overlay(config_, values(*settings)).files["workload.yaml"])
    spec = document["spec"]["template"]["spec"]
    return spec["containers"][0], spec


# --- the committed overlays --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVERLAYS)
def test_committed_overlays_are_fresh(name: str) -> None:
    files = render_example(name).files
    folder = TREE / "overlays" / name
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == files, (
        "run: python -m runtime.k8s.examples"
    )


def test_the_operators_rules_are_those_of_prometheus() -> None:
    committed = (TREE / ALERTS).read_text(encoding="utf-8")
    assert committed == alert_rules(), "run: python -m runtime.k8s.examples"
    groups = yaml.safe_load(committed)["spec"]["groups"]
    assert groups and all(group["rules"] for group in groups)


def test_every_overlay_can_be_asked_for() -> None:
    assert set(k8s.OVERLAYS) == set(OVERLAYS) == {path.name for path in (TREE / "overlays").iterdir()}


def _ew_commands(manifests: Manifests) -> list[list[str]]:
    """Every ew command line in the pods, those in shell scripts too."""
    found = []
    for part in manifests.pods():
        for container in part.all_containers:
            script = (container.get("command") or ["", "", ""])[-1] if container.get("command") else ""
            words = [line.replace("until ", "").split(";")[0].split() for line in script.splitlines()]
            found += [line[1:] for line in words if line[:1] == ["ew"]]
            found += [arguments_of(container)] if container.get("args") else []
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_containers_run_command_lines_that_ew_takes(name: str) -> None:
    lines = _ew_commands(overlay(name))
    assert {"start", "convert-trt", "package"} <= {line[0] for line in lines}
    for line in lines:
        verb, rest = main.get_command(click.Context(main), line[0]), line[1:]
        while isinstance(verb, click.Group):
            verb, rest = verb.get_command(click.Context(verb), rest[0]), rest[1:]
        assert verb is not None, line
        context = verb.make_context(line[0], rest)
        assert context.params.get("extra", ()) == (), "nothing may be left over for trtllm-build"


def test_pods_of_the_multi_node_set_are_what_kustomize_makes_of_the_deployment() -> None:
    """The leader is merged by our own code; kustomize's merge of the same patch is the reference."""
    deployment = yaml.safe_load((TREE / "base" / "deployment.yaml").read_text())
    rendered = render_example("multi-gpu")
    ours = pods.merged(
        deployment["spec"]["template"],
        yaml.safe_load(rendered.files["workload.yaml"])["spec"]["template"],
    )
    theirs = copy.deepcopy(overlay("multi-gpu").of_kind("Deployment")[0]["spec"]["template"])
    ours["spec"]["tolerations"] = pods.TOLERATIONS
    for document in (ours, theirs):
        for item in pods_in(document):
            item.pop("image")
            item.get("volumeMounts", []).sort(key=lambda mount: mount["mountPath"])
        document["spec"]["volumes"].sort(key=lambda volume: volume["name"])
        next(v for v in document["spec"]["volumes"] if v["name"] == "config").pop("configMap")
    assert ours == theirs


def pods_in(template: Any) -> list[Any]:
    return [*template["spec"]["containers"], *template["spec"]["initContainers"]]


# --- which overlay -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config_", "settings", "expected"),
    [
        (config("cpu"), (), ("cpu", 0, 1)),
        (config(), (), ("single-gpu", 1, 1)),
        (config(tp=4), (), ("multi-gpu", 4, 1)),
        (config(tp=8, pp=2), (), ("multi-node", 8, 2)),
        (config(tp=4, pp=2), ("gpus_per_node=4",), ("multi-node", 4, 2)),
        (config("cuda-vllm", tp=2), ("image=ew:1-vllm",), ("pytorch", 2, 1)),
    ],
)
def test_the_config_says_which_overlay(
    config_: DeployConfig, settings: tuple[str, ...], expected: tuple[str, int, int]
) -> None:
    pool = pool_of(config_, values(*settings), None)
    assert (pool.overlay, pool.gpus, pool.nodes) == expected


def test_a_pytorch_package_calls_for_the_pytorch_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EW_HOME", str(tmp_path))
    make_package(tmp_path / "models" / "m", era="pytorch")
    assert pool_of(config(), values(), None).overlay == "pytorch"


@pytest.mark.parametrize(
    ("config_", "overlay_", "settings", "code"),
    [
        (config("cpu"), "single-gpu", (), "overlay_unfit"),
        (config(), "cpu", (), "overlay_unfit"),
        (config(tp=2), "single-gpu", (), "overlay_unfit"),
        (config(), "multi-gpu", (), "overlay_unfit"),
        (config(tp=8, pp=2), "multi-gpu", (), "overlay_unfit"),
        (config(tp=4), "multi-node", (), "overlay_unfit"),
        (config(tp=4, pp=3), None, (), "overlay_unfit"),
        (config("cuda-vllm"), "single-gpu", (), "overlay_unfit"),
        (config("cuda-vllm"), None, (), "no_image"),
        (config(), None, ("triton=19.01",), "unknown_triton"),
        (config(), None, ("gpu=RTX 4090",), "no_gpu_product"),
        (config(), None, ("gpu=potato",), "unknown_gpu"),
        (parse_config({"models": {}}), None, (), "one_engine"),
    ],
)
def test_what_contradicts_is_refused(
    config_: DeployConfig, overlay_: str | None, settings: tuple[str, ...], code: str
) -> None:
    with pytest.raises(UsageError) as refused:
        pool_of(config_, values(*settings), overlay_)
    assert refused.value.code == code
    assert refused.value.hint


def test_engines_are_kept_apart_by_gpu_version_and_size() -> None:
    def path(config_: DeployConfig, *settings: str) -> str:
        packages = render_overlay(config_, values(*settings)).facts["packages"]
        return str(packages["m"])

    variants = {
        path(config()),
        path(config(), "gpu=H100"),
        path(config(), "triton=26.02"),
        path(config(max_batch_size=8)),
        path(config(tp=2)),
        path(config(), "convert_options=--quantization fp8"),
    }
    assert len(variants) == 6
    assert path(config()).startswith("models/m/L40S-trtllm1.2.1-")
    assert "1.1.0" in path(config(), "triton=26.02")


@pytest.mark.parametrize("gpu", PRODUCTS)
def test_pools_choose_nodes_by_product(gpu: str) -> None:
    assert pool_of(config(), values(f"gpu={gpu}"), None).gpu_product == PRODUCTS[gpu]


# --- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drain", [0, 25, 600])
def test_grace_follows_from_the_services_own_drain(drain: int) -> None:
    server, spec = patch_of(config(), f"drain_seconds={drain}", "pre_stop_seconds=20")
    assert option(server["args"], "--drain") == str(drain)
    assert server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    assert spec["terminationGracePeriodSeconds"] >= 20 + teardown.longest_stop_seconds(drain) + 5


def test_a_slower_volume_gets_more_time_to_load() -> None:
    slow, _ = patch_of(config(), "read_mib_per_second=20")
    fast, _ = patch_of(config(), "read_mib_per_second=2000")
    for server in (slow, fast):
        budget = server["startupProbe"]["failureThreshold"] * pods.STARTUP_PERIOD
        assert budget > int(option(server["args"], "--timeout") or 0)
    assert int(option(slow["args"], "--timeout") or 0) > 3 * int(option(fast["args"], "--timeout") or 0)


def test_memory_and_shm_follow_the_plan() -> None:
    def memory(*settings: str, **changes: Any) -> int:
        server, _ = patch_of(config(**changes), *settings)
        return sizing.quantity_bytes(server["resources"]["limits"]["memory"])

    one, two = memory(), memory(tp=2)
    weights = render_example("single-gpu").facts
    assert weights["memory"] == "25Gi"  # weights 14.2, programs 3 + 4, adapters 1, /dev/shm 2
    assert two > one  # the same weights, but libraries and /dev/shm of another rank
    assert memory(triton={"kv_cache_host_memory_bytes": 32 << 30}) >= one + (32 << 30)
    assert memory("memory=99Gi") == 99 << 30
    _, spec = patch_of(config(tp=4))
    assert next(v for v in spec["volumes"] if v["name"] == "shm")["emptyDir"]["sizeLimit"] == "5Gi"


@pytest.mark.parametrize("precision", ["exact", "fast", "int8"])
def test_the_cpu_engines_memory_depends_on_its_precision(precision: str) -> None:
    need = sizing.ModelNeeds("m", "s", 2 << 30, 2 << 30, 20_000, 0, 1)
    models = config("cpu", precision=precision, kv_cache_tokens=64).models
    size = sizing.server_resources({"m": need}, models, parse_values(()), 0)
    expected = {"exact": 10, "fast": 8, "int8": 7}[
        precision
    ]  # GiB: 4, 2 or 1.1 of weights, 5 and a little more
    assert size.memory == expected << 30


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The manifest of a package in models/m with a plan of 1 GiB each."""
    monkeypatch.setenv("EW_HOME", str(tmp_path))
    make_package(tmp_path / "models" / "m")
    path = tmp_path / "models" / "m" / "ew.json"
    document = json.loads(path.read_text())
    names = ("weights_per_rank", "checkpoint_bytes", "kv_bytes_per_token", "build_host_memory")
    document["plan"] = {**dict.fromkeys(names, 1 << 30), "convert_host_memory": 1 << 30}
    path.write_text(json.dumps(document))
    return path


def test_a_package_from_the_hub_is_planned_and_built_without_more_words(package: Path) -> None:
    text = package.read_text().replace('"kind": "path"', '"kind": "hub"')
    package.write_text(text.replace('"model": "m"', '"model": "org/made-from"'))
    rendered = render_overlay(config("cpu"), parse_values(()))
    assert rendered.facts["sources"] == {"m": "org/made-from"}


def test_a_package_from_a_folder_gives_its_plan_but_no_source_for_the_cluster(package: Path) -> None:
    with pytest.raises(UsageError) as refused:
        render_overlay(config("cpu"), parse_values(()))
    assert refused.value.code == "no_source" and "folder" in refused.value.why
    rendered = render_overlay(config("cpu"), parse_values(("source=org/same",)))
    assert rendered.facts["sources"] == {"m": "org/same"}


def test_what_does_not_fit_the_pool_is_refused_with_the_plans_words() -> None:
    with pytest.raises(ResourceError) as refused:
        render_overlay(config(), values("gpu=T4", "gpu_product=x"))
    assert refused.value.code == "plan_does_not_fit"


def test_without_package_and_source_it_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EW_HOME", str(tmp_path))
    with pytest.raises(UsageError) as refused:
        render_overlay(config("cpu"), parse_values(()))
    assert refused.value.code == "no_source" and "source.m=" in refused.value.hint


# --- several nodes -----------------------------------------------------------------------------------------


def test_ranks_run_over_nodes_with_the_slots_they_have() -> None:
    leader, worker = overlay("multi-node").pods(), None
    parts = {part.role: part for part in leader if part.owner["kind"] == "LeaderWorkerSet"}
    server = parts["leader"].server
    assert server is not None
    environment = {item["name"]: item["value"] for item in server["env"]}
    assert environment["OMPI_MCA_orte_default_hostfile"] == multinode.HOSTFILE
    waiter = next(item for item in parts["leader"].all_containers if item["name"] == "ranks")
    assert waiter["env"] == [{"name": "GPUS", "value": server["resources"]["limits"]["nvidia.com/gpu"]}]
    worker = parts["worker"]
    assert (
        worker.spec["terminationGracePeriodSeconds"] > parts["leader"].spec["terminationGracePeriodSeconds"]
    )
    assert "keys" not in {volume["name"] for volume in worker.spec["volumes"]}


def test_generated_names_reach_the_custom_resource() -> None:
    built = overlay("multi-node")
    name = next(
        item["metadata"]["name"] for item in built.of_kind("ConfigMap") if "config.json" in item["data"]
    )
    roles = [part for part in built.pods() if part.owner["kind"] == "LeaderWorkerSet"]
    assert [part.volume("config")["configMap"]["name"] for part in roles] == [name, name]


# --- the command -------------------------------------------------------------------------------------------


def test_output_into_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(EwError) as refused:
        write_tree(render_example("cpu"), tmp_path)
    assert refused.value.code == "output_taken"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_pool_keys_are_folder_names() -> None:
    pool = Pool("single-gpu", "engine", render_example("single-gpu").pool.container, "ew:1", "RTX 6000 Ada")
    assert " " not in pool.key


# --- metrics -----------------------------------------------------------------------------------------------


def test_scaling_asks_for_metrics_that_the_engine_shows() -> None:
    """The adapter's two metrics are those of the autoscaler, made from series and labels of the bridge."""
    adapter = yaml.safe_load((TREE / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    rules = adapter["rules"]["custom"]
    names = {rule["name"]["as"] for rule in rules}
    assert names == {scaling.WAITING_METRIC, scaling.KV_CACHE_METRIC}
    bridge = (SOURCE_ROOT / "templates" / "bridge" / "bridge_metrics.py").read_text(encoding="utf-8")
    queries = [f"{rule['seriesQuery']} {rule['metricsQuery']}" for rule in rules]
    queries += [scaling.WAITING_QUERY, scaling.KV_CACHE_QUERY]
    for query in queries:
        series = re.findall(r"nv_\w+", query)[0]
        label, kind = re.findall(r'(request_type|kv_cache_block_type)="(\w+)"', query)[0]
        for part in (series, label, kind):
            assert f'"{part}"' in bridge, part
