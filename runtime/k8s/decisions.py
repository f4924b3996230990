"""What follows from config, plan and values; everything that is rendered is written from this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from common.config import DeployConfig
from common.errors import UsageError
from runtime.k8s import commands, sizing
from runtime.k8s.commands import Lifetime
from runtime.k8s.pool import Pool, pool_of
from runtime.k8s.sizing import ModelNeeds, Resources
from runtime.k8s.values import Values


@dataclass(frozen=True)
class Decisions:
    """`needs` are by model id; `size` is that of one serving pod."""

    config: DeployConfig
    values: Values
    pool: Pool
    needs: Mapping[str, ModelNeeds]
    life: Lifetime
    size: Resources

    @property
    def replicas(self) -> tuple[int, int]:
        """Fewest and most copies."""
        fewest = self.values.min_replicas or (1 if self.pool.nodes > 1 else 2)
        return fewest, max(self.values.max_replicas or 2 * fewest, fewest)

    @property
    def is_autoscaled(self) -> bool:
        return self.values.autoscaler != "none"

    @cached_property
    def paths(self) -> dict[str, str]:
        """The packages' places on the volume, by model id."""
        return {
            model_id: commands.package_path(model_id, self.convert_arguments(model_id, ""), self.pool)
            for model_id in self.config.models
        }

    def convert_arguments(self, model_id: str, output: str) -> list[str]:
        model, need = self.config.models[model_id], self.needs[model_id]
        return commands.convert_arguments(model, need, self.pool, self.values, output)


def decide(config: DeployConfig, values: Values, overlay: str | None = None) -> Decisions:
    """The decisions for an overlay, or for the one that the config calls for.

    Raises:
        UsageError: values, overlay and config contradict each other, or a source is missing.
        ResourceError: a model does not fit the pool.
        EwError: of other kinds, where a plan needs a model's config from the hub.
    """
    pool = pool_of(config, values, overlay)
    _refuse_unknown_sources(config, values)
    needs = {
        model_id: sizing.needs_of(model_id, model, values, pool.container, pool.era)
        for model_id, model in config.models.items()
    }
    life = commands.lifetime(needs, values, pool)
    size = sizing.server_resources(needs, config.models, values, pool.gpus)
    return Decisions(config, values, pool, needs, life, size)


def _refuse_unknown_sources(config: DeployConfig, values: Values) -> None:
    unknown = set(values.sources) - set(config.models) - {""}
    if unknown:
        raise UsageError(
            f"--set source.{min(unknown)} names no model of the config.",
            hint=f"Models are {', '.join(config.models)}.",
            code="bad_set",
        )
    if "" in values.sources and len(config.models) > 1:
        raise UsageError(
            "--set source is for a config with one model.",
            hint=f"Say which: --set source.{next(iter(config.models))}=ORGANISATION/NAME",
            code="bad_set",
        )
