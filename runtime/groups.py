"""Which models share a tritonserver: those of one engine, environment and era."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from builder.compat import Era
from builder.package import load_package
from common.config import DeployConfig, Engine, ModelConfig
from common.errors import UsageError
from common.paths import home
from runtime.environments import registry
from runtime.launchers.service import LaunchOptions

Environments = dict[Engine, str]


@dataclass(frozen=True)
class Group:
    """What one tritonserver runs, and how it is launched."""

    engine: Engine
    models: tuple[str, ...]
    options: LaunchOptions = LaunchOptions()


def groups_of(
    config: DeployConfig, models: Sequence[str], options: LaunchOptions, envs: Sequence[str] = ()
) -> list[Group]:
    """One group for each engine, environment and era among `models`, in their order.

    A model's environment is the one of `envs` that is for its engine, else what its entry names, else the
    engine's first.

    Raises:
        UsageError: an environment that is not known, that no model can use, or two for one engine.
    """
    named = _by_engine(envs, config, models)
    members: dict[tuple[Engine, str | None, Era | None], list[str]] = {}
    for model in models:
        entry = config.models[model]
        env = named.get(entry.engine) or entry.env
        members.setdefault((entry.engine, env, _era(entry)), []).append(model)
    return [
        Group(engine, tuple(names), replace(options, env=env)) for (engine, env, _), names in members.items()
    ]


def _by_engine(envs: Sequence[str], config: DeployConfig, models: Sequence[str]) -> Environments:
    engines = {config.models[model].engine for model in models}
    found: Environments = {}
    for name in envs:
        engine = registry.get(name).engine
        if engine not in engines:
            raise UsageError(
                f"The environment {name!r} is for {engine}, not {' or '.join(sorted(engines))}.",
                hint=f"Make one for it: ./ew setup --engine {sorted(engines)[0]} --env OTHER_NAME",
                code="environment_engine",
            )
        if engine in found:
            raise UsageError(
                f"{found[engine]!r} and {name!r} are both environments for {engine}.",
                hint="Start one after the other, or name each model's env in deploy/config.json.",
                code="two_environments",
            )
        found[engine] = name
    return found


def _era(entry: ModelConfig) -> Era | None:
    """Only cuda-trt has eras: an engine's C++ backend and the PyTorch runtime need different servers."""
    if entry.engine != "cuda-trt":
        return None
    return load_package(home().resolve(entry.model_path)).manifest.runtime.era
