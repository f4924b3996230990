"""Launch plans for machines that are not this one: pure functions of a request and a described machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from builder.compat import containers
from builder.gate import same_version
from common.errors import EnvironmentProblem, EwError, ResourceError, UsageError
from runtime.launchers import LaunchRequest, Machine, ServedModel, TritonPorts, plan_launch
from runtime.launchers.gpus import parse_gpus
from runtime.launchers.machine import CPP_BACKEND, Docker, LocalServer, find_docker, find_local
from runtime.launchers.request import LaunchPlan
from runtime.nvidia import Gpu

GIB = 2**30
H100 = tuple(Gpu(index, "H100", 80 * GIB, (70 + index) * GIB, "9.0") for index in range(4))
DOCKER = Docker(Path("/usr/bin/docker"), "", True)
WITH_DOCKER = Machine(
    docker=DOCKER, gpus=H100, driver="590.44.01", wheel=Path("/wheel/pytriton/tritonserver")
)
QWEN = ServedModel("qwen", Path("/ew/models/qwen"), "engine", 2, 1, "1.2.1", "9.0", 8 * GIB)


def ask(*models: ServedModel, **changes: object) -> LaunchRequest:
    request = LaunchRequest(
        "cuda-trt",
        models or (QWEN,),
        Path("/ew/model_repository"),
        Path("/ew"),
        Path("/src"),
        "abc",
        ports=TritonPorts(9000, 9001, 9002),
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def line(plan: LaunchPlan) -> list[str]:
    return list(plan.command.arguments)


def ranks(command: list[str]) -> list[list[str]]:
    """The arguments of each rank of an mpirun line."""
    found: list[list[str]] = [[]]
    for argument in command[command.index("mpirun") :]:
        if argument == ":":
            found.append([])
        else:
            found[-1].append(argument)
    return found


@pytest.fixture
def ngc(tmp_path: Path) -> LocalServer:
    """A tritonserver as in NVIDIA's trtllm container."""
    for backend, library in (("tensorrtllm", CPP_BACKEND), ("python", "libtriton_python.so")):
        (tmp_path / "backends" / backend).mkdir(parents=True)
        (tmp_path / "backends" / backend / library).touch()
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.touch(mode=0o755)
    return LocalServer(binary, tmp_path, "2.70.0", tensorrt_llm="1.2.1")


def test_docker_takes_the_image_of_the_engines_version() -> None:
    plan = plan_launch(ask(), WITH_DOCKER)
    assert plan.launcher == "docker"
    assert plan.image == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    older = plan_launch(ask(replace(QWEN, tensorrt_llm="1.0.0")), WITH_DOCKER)
    assert older.image == "nvcr.io/nvidia/tritonserver:25.10-trtllm-python-py3"


@pytest.mark.parametrize("row", containers(), ids=lambda row: row.triton)
def test_every_container_serves_its_own_version(row: object) -> None:
    version, tag = row.tensorrt_llm, row.tag  # type: ignore[attr-defined]
    plan = plan_launch(ask(replace(QWEN, tensorrt_llm=version), image=tag, launcher="docker"), WITH_DOCKER)
    assert plan.image == tag


def test_an_engine_is_refused_by_a_container_of_another_version() -> None:
    other = "nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3"
    with pytest.raises(EnvironmentProblem, match=r"1\.2\.1.*0\.21\.0") as caught:
        plan_launch(ask(image=other), WITH_DOCKER)
    assert caught.value.code == "version_gate"


def test_the_docker_line_has_what_a_container_needs() -> None:
    command = line(plan_launch(ask(gpus=(0, 2)), WITH_DOCKER))
    assert command[:3] == ["docker", "run", "--rm"]
    assert '--gpus="device=0,2"' in command
    assert {"--init", "--shm-size=2g", "--ulimit=memlock=-1", "--ulimit=stack=67108864"} <= set(command)
    published = [argument for argument in command if argument.startswith("--publish")]
    assert published == [f"--publish=127.0.0.1:900{port}:800{port}" for port in range(3)]
    assert "--volume=/ew/model_repository:/ew/model_repository:ro" in command
    assert "--volume=/ew/models/qwen:/ew/models/qwen:ro" in command
    assert any(argument.startswith("--user=") for argument in command)


def test_a_token_goes_to_the_container_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    command = line(plan_launch(ask(), WITH_DOCKER))
    assert "--env=HF_TOKEN" in command
    assert not any("hf_secret" in argument for argument in command)


def test_docker_brings_the_workers_code_where_python_drives_the_engine() -> None:
    mount = "--volume=/src:/src:ro"
    assert mount not in line(plan_launch(ask(), WITH_DOCKER))
    assert mount in line(plan_launch(ask(replace(QWEN, era="pytorch")), WITH_DOCKER))
    vllm = plan_launch(ask(replace(QWEN, era=None), engine="cuda-vllm"), WITH_DOCKER)
    assert mount in line(vllm)
    assert vllm.image == "nvcr.io/nvidia/tritonserver:26.07-vllm-python-py3"


def test_leader_mode_has_a_rank_a_gpu_and_only_the_first_one_listens(ngc: LocalServer) -> None:
    machine = Machine(local=ngc, gpus=H100, driver="590.44.01", mpirun=Path("/usr/bin/mpirun"))
    plan = plan_launch(ask(replace(QWEN, pp_size=2)), machine)
    assert (plan.launcher, plan.parallel, plan.gpus) == ("local", "leader", (0, 1, 2, 3))
    leader, *followers = ranks(line(plan))
    assert leader[:5] == ["mpirun", "--allow-run-as-root", "-n", "1", str(ngc.binary)]
    assert "--load-model=qwen" in leader
    assert "--http-port=9000" in leader
    assert len(followers) == 3
    for rank, follower in enumerate(followers, 1):
        assert follower[:2] == ["-n", "1"]
        assert "--load-model=qwen-tensorrt_llm" in follower
        assert {"--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"} <= set(follower)
        assert f"--backend-config=python,shm-region-prefix-name=ew-abc-r{rank}-" in follower
    assert plan.command.environment["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


def test_models_of_different_sizes_get_the_orchestrator(ngc: LocalServer) -> None:
    machine = Machine(local=ngc, gpus=H100, driver="590.44.01", mpirun=Path("/usr/bin/mpirun"))
    small = replace(QWEN, model_id="small", tp_size=1)
    plan = plan_launch(ask(QWEN, small), machine)
    assert plan.parallel == "orchestrator"
    assert plan.command.environment["TRTLLM_ORCHESTRATOR"] == "1"
    assert plan.command.environment["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] == "1"
    command = line(plan)
    assert len(ranks(command)) == 1
    assert {"--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"} <= set(command)
    assert "--cuda-memory-pool-byte-size=0:0" in command


def test_the_pytorch_era_starts_its_ranks_itself_unless_told_otherwise(ngc: LocalServer) -> None:
    machine = Machine(local=ngc, gpus=H100, driver="590.44.01", mpirun=Path("/usr/bin/mpirun"))
    model = replace(QWEN, era="pytorch", tensorrt_llm="1.2.1")
    alone = plan_launch(ask(model), machine)
    assert alone.parallel == "single"
    assert line(alone)[0] == str(ngc.binary)
    assert not [argument for argument in line(alone) if argument.startswith("--backend-directory")]
    assert alone.command.environment["EW_WORKER_PYTHON"] == "python3"
    under_mpi = line(plan_launch(ask(model, parallel="llmapi"), machine))
    assert under_mpi[:6] == [
        "mpirun",
        "--allow-run-as-root",
        "-n",
        "2",
        "trtllm-llmapi-launch",
        str(ngc.binary),
    ]


def test_one_gpu_needs_no_mpi(ngc: LocalServer) -> None:
    machine = Machine(local=ngc, gpus=H100, driver="590.44.01")
    plan = plan_launch(ask(replace(QWEN, tp_size=1)), machine)
    assert plan.parallel == "single"
    assert plan.gpus == (3,), "the GPU with most free memory"


@pytest.mark.parametrize("parallel", ["leader", "orchestrator"])
def test_modes_of_the_other_era_are_refused(parallel: str) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        plan_launch(ask(replace(QWEN, era="pytorch"), parallel=parallel), WITH_DOCKER)
    with pytest.raises(UsageError, match="does not fit"):
        plan_launch(ask(parallel="llmapi"), WITH_DOCKER)


def test_ranks_without_mpirun_are_refused(ngc: LocalServer) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        plan_launch(ask(launcher="local"), Machine(local=ngc, gpus=H100))
    assert caught.value.code == "mpirun_missing"


def test_an_environment_is_preferred_to_a_large_image_when_python_drives_the_engine() -> None:
    python = Path("/envs/ew-vllm/bin/python")
    plan = plan_launch(ask(replace(QWEN, era=None), engine="cuda-vllm", worker_python=python), WITH_DOCKER)
    assert plan.launcher == "pytriton"
    assert plan.command.environment["EW_WORKER_PYTHON"] == str(python)
    assert line(plan)[0] == "/wheel/pytriton/tritonserver/bin/tritonserver"


def test_own_options_come_last_for_every_rank(ngc: LocalServer) -> None:
    machine = Machine(local=ngc, gpus=H100, mpirun=Path("/usr/bin/mpirun"))
    plan = plan_launch(ask(triton_options=("--log-verbose=1", "--http-port=7000")), machine)
    for rank in ranks(line(plan)):
        assert rank[-2:] == ["--log-verbose=1", "--http-port=7000"]


def test_a_version_without_a_container_points_to_setup() -> None:
    model = replace(QWEN, era="pytorch", tensorrt_llm="1.3.0rc22")
    with pytest.raises(EnvironmentProblem) as caught:
        plan_launch(ask(model), WITH_DOCKER)
    assert caught.value.code == "no_image"
    assert "./ew setup --engine cuda-trt --version 1.3.0rc22" in caught.value.hint


def test_the_gate_names_gpu_memory_driver_and_a_missing_engine() -> None:
    cases: list[tuple[ServedModel, Machine, str]] = [
        (replace(QWEN, capability="8.0"), WITH_DOCKER, "compute capability 8.0"),
        (replace(QWEN, weight_bytes=90 * GIB), WITH_DOCKER, "weights take 90.0 GiB"),
        (QWEN, replace(WITH_DOCKER, driver="570.00"), "driver 580"),
        (replace(QWEN, engine_pending="no GPU was here"), WITH_DOCKER, "no engine yet"),
    ]
    for model, machine, expected in cases:
        with pytest.raises(EnvironmentProblem, match=expected):
            plan_launch(ask(model), machine)


@pytest.mark.parametrize(
    ("folder", "problem"),
    [("/数据", "beyond ASCII"), ("/my ew", "spaces"), ("/a'b", "signs of the shell"), ("/$HOME", "signs")],
)
def test_a_folder_that_tritons_python_cannot_start_in_is_refused(folder: str, problem: str) -> None:
    for paths in ({"repository": Path(folder, "models")}, {"home": Path(folder)}):
        request = ask(**paths)
        with pytest.raises(EnvironmentProblem, match=problem) as caught:
            plan_launch(request, WITH_DOCKER)
        assert caught.value.code == "path_unusable"
        assert "EW_HOME=" in caught.value.hint
        assert folder in plan_launch(request, WITH_DOCKER, dry_run=True).warnings[0]


def test_an_older_minor_driver_is_a_warning() -> None:
    plan = plan_launch(ask(), replace(WITH_DOCKER, driver="580.95.05"))
    assert "580.95.05" in plan.warnings[0]


def test_a_small_shared_memory_is_a_warning_outside_of_docker(ngc: LocalServer) -> None:
    inside = Machine(local=ngc, gpus=H100, driver="590.44.01", mpirun=Path("/usr/bin/mpirun"), shm=64 * 2**20)
    assert "/dev/shm has 64 MiB" in plan_launch(ask(), inside).warnings[0]
    assert plan_launch(ask(), replace(inside, shm=8 * GIB)).warnings == ()
    assert plan_launch(ask(launcher="docker"), replace(WITH_DOCKER, shm=64 * 2**20)).warnings == ()


def test_too_few_gpus_and_unknown_gpus_are_refused() -> None:
    with pytest.raises(ResourceError, match="need 4 GPUs; this machine shows 1 GPU"):
        plan_launch(ask(replace(QWEN, tp_size=4)), replace(WITH_DOCKER, gpus=H100[:1]))
    with pytest.raises(UsageError, match="no GPU 7"):
        plan_launch(ask(gpus=(0, 7)), WITH_DOCKER)
    with pytest.raises(UsageError, match="--gpus names 1"):
        plan_launch(ask(gpus=(0,)), WITH_DOCKER)


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "0;1"])
def test_bad_gpu_lists_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_gpus(text)


def test_nothing_that_can_serve_names_every_obstacle() -> None:
    with pytest.raises(EwError) as caught:
        plan_launch(ask(), Machine(gpus=H100))
    assert caught.value.code == "no_launcher"
    assert all(name in caught.value.why for name in ("local:", "pytriton:", "docker:"))


def test_a_dry_run_plans_for_a_machine_that_is_not_here() -> None:
    plan = plan_launch(ask(replace(QWEN, tp_size=4)), Machine(), dry_run=True)
    assert plan.launcher == "docker"
    assert '--gpus="device=0,1,2,3"' in line(plan)


def test_a_plan_is_the_same_every_time() -> None:
    assert plan_launch(ask(), WITH_DOCKER) == plan_launch(ask(), WITH_DOCKER)


@pytest.mark.parametrize(
    ("built", "serving", "same"),
    [
        ("1.2.1", "1.2.1", True),
        ("1.0.3", "1.0.3.2510", True),
        ("1.2.0", "1.2.1", False),
        ("1.3.0rc15", "1.3.0", False),
    ],
)
def test_versions_must_agree_to_the_patch(built: str, serving: str, same: bool) -> None:
    assert same_version(built, serving) is same


def test_docker_and_tritonserver_are_found_on_the_path(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\necho \'{"nvidia":{},"runc":{}}\'\n')
    docker.chmod(0o755)
    settings = {"PATH": str(tmp_path)}
    assert find_docker(settings) == Docker(docker, "", True)
    docker.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 1\n")
    assert "Cannot connect" in find_docker(settings).problem
    assert find_docker({"PATH": "/nowhere"}).program is None
    assert find_local(settings, root=tmp_path) is None
    server = tmp_path / "bin" / "tritonserver"
    server.parent.mkdir()
    server.touch(mode=0o755)
    found = find_local({**settings, "NVIDIA_TRITON_SERVER_VERSION": "26.07"}, root=tmp_path)
    assert found is not None
    assert (found.root, found.version) == (tmp_path, "26.07")


def test_cuda_hf_may_be_tried_without_a_gpu() -> None:
    python = Path("/envs/ew-hf/bin/python")
    request = ask(replace(QWEN, era=None, tp_size=1), engine="cuda-hf", worker_python=python)
    plan = plan_launch(request, replace(WITH_DOCKER, gpus=()))
    assert (plan.launcher, plan.gpus) == ("pytriton", ())
    assert any("on the CPU" in warning for warning in plan.warnings)
    assert plan_launch(request, WITH_DOCKER).gpus
