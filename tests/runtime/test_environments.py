"""Environments: the commands for every engine and manager, and real ones made, resumed, repaired, removed.

conda and docker are scripts that record their arguments; virtual environments are real, installed offline
from wheels made here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from common.errors import EnvironmentProblem, NetworkError, UsageError
from runtime.environments import checks, registry
from runtime.environments.choose import SetupOptions, request_for
from runtime.environments.plan import SetupPlan, plan_setup, shown, torch_version, unmet
from runtime.environments.releases import release_for, releases
from runtime.environments.setup import set_up
from runtime.nvidia import Gpu, Nvidia

GB = 10**9
H100 = Nvidia("580.95.05", "13.0", (Gpu(0, "H100", 80 * GB, 79 * GB, "9.0"),))
PIP = "conda run --no-capture-output --name ew-trt python -m pip install --disable-pip-version-check"
UV = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
TRT_VERSIONS = {"tensorrt_llm": "1.2.1", "torch": "2.9.1", "transformers": "4.57.3", "numpy": "1.26.4"}
FAKE_CONDA = """#!{python}
import json, os, subprocess, sys
with open({record!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "-c" in sys.argv:
    print(json.dumps({{"prefix": {prefix!r}, "versions": json.load(open({versions!r}))}}))
if os.path.exists({fail!r}) and "install" in sys.argv:
    print("ERROR: " + open({fail!r}).read())
    sys.exit(1)
"""


class Bench:
    """A home folder and a path of our own, with recording managers on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.fail = folder / "fail"
        self.versions = folder / "versions.json"
        self.versions.write_text(json.dumps(TRT_VERSIONS))
        self.prefix = folder / "conda-env"

    def add(self, name: str) -> None:
        script = self.bin / name
        values = {key: str(getattr(self, key)) for key in ("prefix", "versions", "fail")}
        script.write_text(FAKE_CONDA.format(python=sys.executable, record=str(self.record), **values))
        script.chmod(0o755)

    @property
    def record(self) -> Path:
        return self.folder / "record"

    @property
    def calls(self) -> list[list[str]]:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return [json.loads(line) for line in lines]

    def make_prefix(self) -> None:
        """A conda environment's Python that answers as the real one would."""
        python = self.prefix / "bin" / "python"
        python.parent.mkdir(parents=True)
        answer = json.dumps({"prefix": str(self.prefix), "versions": TRT_VERSIONS})
        python.write_text(f"#!/bin/sh\necho '{answer}'\n")
        python.chmod(0o755)


@pytest.fixture
def bench(ew_home: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(ew_home)
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    return made


def plan(**options: object) -> SetupPlan:
    return plan_setup(request_for(SetupOptions(**options)))  # type: ignore[arg-type]


def test_tensorrt_llm_by_conda_with_the_pins_of_its_release(bench: Bench) -> None:
    bench.add("conda")
    assert shown(plan(engine="cuda-trt", name="ew-trt").steps) == [
        "conda create --yes --name ew-trt --channel conda-forge python=3.12 pip openmpi",
        f"{PIP} --upgrade pip setuptools wheel",
        f"{PIP} --index-url https://download.pytorch.org/whl/cu130 torch==2.9.1",
        f"{PIP} --extra-index-url https://pypi.nvidia.com "
        "tensorrt_llm==1.2.1 torch==2.9.1 transformers==4.57.3 'numpy<2'",
    ]


def test_the_pytorch_era_has_numpy_2_and_its_own_torch(bench: Bench) -> None:
    bench.add("micromamba")
    last = plan(engine="cuda-trt", version="1.3.0rc22").steps[-1].command
    assert last[0] == "micromamba"
    assert last[-4:] == ("tensorrt_llm==1.3.0rc22", "torch==2.11.0", "transformers==5.5.4", "numpy>=2.0,<2.4")


def test_vllm_is_pinned(bench: Bench) -> None:
    steps = plan(engine="cuda-vllm", manager="venv", python=sys.executable).steps
    assert steps[0].command == (sys.executable, "-m", "venv", str(registry.folder() / "ew-vllm"))
    assert steps[-1].command[-4:] == ("vllm==0.24.0", "torch==2.11.0", "transformers>=5", "numpy>=2")


def test_transformers_is_named_once_and_comes_with_psutil(bench: Bench) -> None:
    made = plan(engine="cuda-hf", manager="venv", python=sys.executable)
    assert made.steps[0].command == (sys.executable, "-m", "venv", str(registry.folder() / "ew-hf"))
    assert made.steps[-1].command[-4:] == ("transformers==5.23.0", "torch==2.13.0", "numpy>=1.26", "psutil")
    older = plan(engine="cuda-hf", manager="venv", version="5.17.0")
    assert (older.pins["transformers"], older.pins["torch"]) == ("==5.17.0", "==2.11.0")


def test_there_is_no_container_with_transformers(bench: Bench) -> None:
    bench.add("docker")
    with pytest.raises(EnvironmentProblem, match="No Triton container has the engine cuda-hf"):
        plan(engine="cuda-hf", manager="container")


def test_a_second_cpu_environment_comes_from_the_lock(bench: Bench) -> None:
    steps = plan(engine="cpu", name="second").steps
    assert [step.name for step in steps] == ["create", "packages"]
    assert "--require-hashes" in steps[1].command
    assert steps[1].command[-2] == "-r"
    assert steps[1].command[-1].endswith("requirements/base.lock")


def test_the_container_way_pulls_the_image_of_the_version(bench: Bench) -> None:
    bench.add("docker")
    made = plan(engine="cuda-trt", manager="container", version="1.1.0")
    assert shown(made.steps) == ["docker pull nvcr.io/nvidia/tritonserver:26.02-trtllm-python-py3"]
    with pytest.raises(EnvironmentProblem, match="No Triton container"):
        plan(engine="cuda-trt", manager="container", version="1.3.0rc22")


def test_offline_every_step_reads_the_folder_only(bench: Bench, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    commands = shown(plan(engine="cuda-trt", manager="venv", find_links=wheels).steps[1:])
    assert len(commands) == 2
    for command in commands:
        assert f"--no-index --find-links {wheels}" in command
        assert "http" not in command


def test_uv_installs_from_one_source_and_leaves_several_indexes_to_pip(bench: Bench, tmp_path: Path) -> None:
    bench.add("uv")
    uv, wheels = str(bench.bin / "uv"), tmp_path / "wheels"
    wheels.mkdir()
    offline = plan(engine="cuda-vllm", manager="venv", find_links=wheels).steps
    assert offline[0].command[:3] == (uv, "venv", "--quiet")
    assert "--seed" not in offline[0].command, "seeding would ask an index for pip"
    assert offline[-1].command[:3] == (uv, "pip", "install")
    online = plan(engine="cuda-trt", manager="venv").steps
    assert "--seed" in online[0].command
    assert online[-1].command[1:4] == ("-m", "pip", "install")


@pytest.mark.parametrize("engine", ["cuda-trt", "cuda-vllm", "cuda-hf"])
def test_every_release_has_a_plan_that_meets_its_own_pins(engine: str, bench: Bench) -> None:
    for release in releases(engine):
        made = plan(engine=engine, version=release.version, manager="venv")
        versions: dict[str, str | None] = {"torch": torch_version(release.torch)}
        assert unmet({"torch": made.pins["torch"]}, versions) == []


@pytest.mark.parametrize("version", ["0.9.0", "x.y"])
def test_versions_that_cannot_be_set_up_are_refused(version: str) -> None:
    with pytest.raises(UsageError):
        release_for("cuda-trt", version)


def test_a_version_between_known_ones_takes_the_older_pins() -> None:
    assert release_for("cuda-trt", "1.3.0rc23").torch == release_for("cuda-trt", "1.3.0rc22").torch


@pytest.mark.parametrize("name", ["../x", "a b", "", "-x", "a/b"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        registry.check_name(name)


def test_checks_name_driver_gpu_python_and_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def ids(seen: Nvidia, **options: object) -> set[str]:
        request = plan(engine="cuda-trt", **options).request
        return {problem.id for problem in checks.check(request, seen) if problem.severity == "error"}

    bench.add("conda")
    monkeypatch.setattr(checks, "disk_bytes", lambda engine: 1)
    assert ids(H100) == set()
    assert ids(Nvidia(problem="no driver")) == {"gpu"}
    assert ids(Nvidia("535.1", "12.2", H100.gpus)) == {"driver"}
    assert ids(Nvidia("580.1", "13.0", (Gpu(0, "P100", GB, GB, "6.0"),))) == {"capability"}
    assert ids(H100, python="3.11") == {"python"}
    assert ids(H100, manager="mamba") == {"manager"}
    monkeypatch.setattr(checks, "disk_bytes", lambda engine: 1 << 60)
    assert ids(H100) == {"disk"}


def test_a_conda_environment_is_made_step_by_step_and_remembered(bench: Bench) -> None:
    bench.add("conda")
    bench.make_prefix()
    environment = set_up(plan(engine="cuda-trt"))
    assert environment.done == ("create", "pip", "torch", "engine")
    assert environment.prefix == str(bench.prefix)
    assert registry.judge(environment) == ("ready", "")
    assert registry.for_engine("cuda-trt") == environment
    calls = len(bench.calls)
    set_up(plan(engine="cuda-trt"))
    assert not [call for call in bench.calls[calls:] if "install" in call or "create" in call]


def test_a_failed_step_is_explained_and_resumed(bench: Bench) -> None:
    bench.add("conda")
    bench.make_prefix()
    bench.fail.write_text("Max retries exceeded with url: /simple/torch/")
    with pytest.raises(NetworkError) as caught:
        set_up(plan(engine="cuda-trt"))
    assert "--find-links" in caught.value.hint
    assert registry.get("ew-trt").done == ("create",)
    assert registry.judge(registry.get("ew-trt"))[0] == "unfinished"
    bench.fail.unlink()
    set_up(plan(engine="cuda-trt"))
    creates = [call for call in bench.calls if call[0] == "create"]
    assert len(creates) == 1


def test_wrong_versions_at_the_end_are_an_error(bench: Bench) -> None:
    bench.add("conda")
    bench.versions.write_text(json.dumps({**TRT_VERSIONS, "numpy": "2.1.0"}))
    with pytest.raises(EnvironmentProblem, match=r"numpy is 2\.1\.0, not <2"):
        set_up(plan(engine="cuda-trt"))


def test_another_version_makes_it_anew(bench: Bench) -> None:
    bench.add("conda")
    bench.make_prefix()
    set_up(plan(engine="cuda-trt"))
    bench.versions.write_text(json.dumps({**TRT_VERSIONS, "tensorrt_llm": "1.2.0"}))
    environment = set_up(plan(engine="cuda-trt", version="1.2.0"))
    assert environment.version == "1.2.0"
    assert ["env", "remove", "--yes", "--name", "ew-trt"] in bench.calls
    assert len(registry.all_environments()) == 1


def test_a_broken_environment_is_made_anew(bench: Bench) -> None:
    bench.add("conda")
    bench.make_prefix()
    set_up(plan(engine="cuda-trt"))
    (bench.prefix / "bin" / "python").unlink()
    assert registry.judge(registry.get("ew-trt"))[0] == "broken"
    said: list[str] = []
    set_up(plan(engine="cuda-trt"), progress=said.append)
    assert "Making ew-trt anew" in said[0]
    assert len([call for call in bench.calls if call[0] == "create"]) == 2


def test_a_container_is_judged_by_its_image(bench: Bench) -> None:
    bench.add("docker")
    environment = set_up(plan(engine="cuda-trt", manager="container"))
    assert registry.judge(environment)[0] == "ready"
    (bench.bin / "docker").write_text("#!/bin/sh\nexit 1\n")
    assert registry.judge(environment)[0] == "broken"


def test_asking_for_an_environment_of_another_engine_is_refused(bench: Bench) -> None:
    bench.add("conda")
    bench.make_prefix()
    set_up(plan(engine="cuda-trt"))
    with pytest.raises(UsageError, match="is for cuda-trt"):
        registry.for_engine("cuda-vllm", "ew-trt")
    with pytest.raises(UsageError, match="no environment 'other'"):
        registry.get("other")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Empty packages under the real names, in the versions that the plan for vLLM pins."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, version in (
        ("vllm", "0.24.0"),
        ("torch", "2.11.0"),
        ("transformers", "5.23.0"),
        ("numpy", "2.3.5"),
    ):
        make_wheel(folder, name, version)
    return folder


def make_wheel(folder: Path, name: str, version: str) -> None:
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={digest(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def test_a_real_environment_is_made_found_broken_and_removed(
    bench: Bench, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if UV:  # ten times faster than venv and pip, which do the same where there is no uv
        monkeypatch.setenv("PATH", f"{Path(UV).parent}:/usr/bin:/bin")
    made = plan(engine="cuda-vllm", manager="venv", python=sys.executable, find_links=wheels)
    environment = set_up(made)
    assert environment.packages["vllm"] == "0.24.0"
    assert registry.judge(environment) == ("ready", "")
    assert registry.size(environment) > 1000

    for part in environment.python.parent.parent.glob("lib/*/site-packages/torch-*"):
        (part / "METADATA").unlink()
    assert registry.judge(environment)[0] == "broken"

    registry.remove(environment)
    assert registry.all_environments() == []
    assert not (registry.folder() / "ew-vllm").exists()
