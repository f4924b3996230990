"""The launch of a service: from its record, its packages and the options of `ew start` to a plan."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from builder.package import load_package
from common.config import DeployConfig, Engine
from common.errors import EnvironmentProblem, NetworkError
from common.paths import SOURCE_ROOT, home
from runtime.environments import registry
from runtime.environments.registry import Environment
from runtime.launchers.choose import plan_launch
from runtime.launchers.machine import Machine, find_wheel, inspect
from runtime.launchers.request import (
    LauncherChoice,
    LaunchPlan,
    LaunchRequest,
    ParallelChoice,
    ServedModel,
)
from runtime.launchers.served import served_model
from runtime.launchers.tracing import trace_options
from runtime.state import Server


@dataclass(frozen=True)
class LaunchOptions:
    """What `ew start` was told about how to run; see its help."""

    env: str | None = None
    launcher: LauncherChoice = "auto"
    parallel: ParallelChoice = "auto"
    gpus: tuple[int, ...] = ()
    image: str | None = None
    shm_size: str = "2g"
    triton_options: tuple[str, ...] = ()


def plan_service(
    server: Server, config: DeployConfig, options: LaunchOptions, *, dry_run: bool = False
) -> LaunchPlan:
    """How this tritonserver is started. Errors as in `plan_launch`."""
    engine = server.engine
    environment = registry.for_engine(engine, options.env) if options.env or engine != "cpu" else None
    if environment and not dry_run:
        _refuse_unusable(environment)
    request = LaunchRequest(
        engine,
        tuple(_model(model_id, config, engine) for model_id in server.models),
        home().repository,
        home().root,
        SOURCE_ROOT,
        server.server_id,
        ports=server.ports,
        launcher=options.launcher,
        parallel=options.parallel,
        gpus=options.gpus,
        image=options.image or (environment.image if environment and environment.image else None),
        worker_python=_worker_python(environment),
        triton_options=(*trace_options(os.environ), *options.triton_options),
        shm_size=options.shm_size,
    )
    return plan_launch(request, _machine(engine, options), dry_run=dry_run)


def ensure_image(plan: LaunchPlan, progress: Callable[[str], None]) -> None:
    """Pull a container's image before the time to get ready begins to run.

    Raises:
        NetworkError: it is not here and cannot be pulled.
    """
    if plan.image is None:
        return
    known = subprocess.run(
        ["docker", "image", "inspect", plan.image], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if known.returncode == 0:
        return
    progress(f"pulling {plan.image}")
    if subprocess.run(["docker", "pull", plan.image], stdout=sys.stderr).returncode != 0:
        raise NetworkError(
            f"{plan.image} could not be pulled; docker's own message is above.",
            hint="Log in (docker login nvcr.io), or load it from a file: docker load -i IMAGE.tar",
            code="image_pull",
        )


def _refuse_unusable(environment: Environment) -> None:
    found, problem = registry.judge(environment)
    if found != "ready":
        raise EnvironmentProblem(
            f"The environment {environment.name} is {found}.",
            why=problem,
            hint=f"Mend it: ./ew setup --engine {environment.engine} --env {environment.name}",
            code=f"environment_{found}",
        )


def _model(model_id: str, config: DeployConfig, engine: Engine) -> ServedModel:
    model = config.models[model_id]
    served = served_model(model_id, load_package(home().resolve(model.model_path)), engine)
    return replace(served, num_nodes=model.triton.num_nodes)


def _worker_python(environment: Environment | None) -> Path | None:
    """The environment's interpreter; without one, what the variable EW_WORKER_PYTHON names."""
    if environment is not None:
        return None if environment.manager == "container" else environment.python
    named = os.environ.get("EW_WORKER_PYTHON")
    return Path(named) if named else None


def _machine(engine: Engine, options: LaunchOptions) -> Machine:
    """For the plain cpu case no GPU or Docker is asked for: that would cost a second at every start."""
    if engine == "cpu" and options.launcher in ("auto", "pytriton"):
        return Machine(wheel=find_wheel())
    return inspect()
