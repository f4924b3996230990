"""`ew render`: deploy/config.json and packages -> a Triton model repository."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from builder.package import Package, load_package
from builder.pbtxt import CONFIG_NAME
from builder.repository_changes import RECORD_NAME, Changes, diff, plan_changes
from builder.repository_models import ModelFiles, model_files
from builder.repository_target import Layout, Target, has_fixed_names
from builder.repository_write import apply_changes, locked
from common.config import DeployConfig, ModelConfig
from common.errors import ConfigError, RepositoryError, ResourceError, UsageError
from common.paths import Home

OF_A_DISK = ("lost+found",)  # a volume that is otherwise empty has it


@dataclass(frozen=True)
class RenderReport:
    """What a render did, or would do; names are relative to `repository`."""

    repository: Path
    models: list[str]
    written: list[str]
    unchanged: list[str]
    removed: list[str]
    dry_run: bool = False
    diff: str = ""

    def as_dict(self) -> dict[str, object]:
        return {
            "repository": str(self.repository),
            "models": self.models,
            "written": self.written,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "dry_run": self.dry_run,
        }


def render(
    config: DeployConfig,
    home: Home,
    *,
    only: list[str] | None = None,
    output: Path | None = None,
    dry_run: bool = False,
    force: bool = False,
    with_diff: bool = False,
    trtllm_version: str | None = None,
    layout: Layout = "ew",
) -> RenderReport:
    """Bring a model repository in line with the configuration.

    All files are made and checked before the first is written. The same input gives the same bytes, and
    files that are right already keep their times.

    Args:
        only: render these model ids and leave all others alone; without it, models that render made and
            that are no longer in the configuration are removed.
        output: the repository; `home.repository` when not given.
        dry_run: change nothing.
        force: overwrite and remove files that were edited by hand.
        with_diff: fill the report's `diff`.
        trtllm_version: TensorRT-LLM of the container that will serve engines; each package's when not given.
        layout: `upstream` names the folders ensemble, preprocessing and so on, for clients that know those,
            and writes vLLM models for vLLM's own backend; `llmapi` writes the one text model of upstream's
            newer form. Fixed names leave room for one model in a repository.

    Raises:
        UsageError: `only` names a model that is not configured, the version cannot serve engines, several
            models were asked for under fixed names, or the layout does not fit the engine.
        ConfigError: two models would share a folder, or versions cannot be served beside each other.
        PackageError: a package is missing, damaged or lacks what its engine needs.
        RepositoryError: a template is wrong, files were edited by hand, or the folder holds other things.
        ResourceError: the repository cannot be read or written.
    """
    repository = (output or home.repository).absolute()
    _refuse_other_folder(repository)
    chosen = _chosen(config, only, layout)
    fixed = any(has_fixed_names(config.models[model_id], layout) for model_id in chosen)
    models = [
        model_files(_targets(model_id, config.models[model_id], home, repository, trtllm_version, layout))
        for model_id in chosen
    ]
    with contextlib.nullcontext() if dry_run else locked(repository):
        changes = plan_changes(repository, models, keep_others=only is not None and not fixed)
        report = _report(repository, models, changes, dry_run=dry_run, with_diff=with_diff)
        if not force and not dry_run:
            changes.refuse_conflicts(repository)
        if not dry_run and changes.any:
            apply_changes(repository, changes)
    return report


def _refuse_other_folder(repository: Path) -> None:
    """A mistyped folder would get dozens of files between its own."""
    try:
        is_other = _holds_other_things(repository)
    except OSError as error:
        raise ResourceError(
            f"The folder {repository} cannot be read.",
            why=f"{error.strerror}.",
            hint="Check owner, permissions and mounts.",
            code="not_readable",
        ) from None
    if is_other:
        raise RepositoryError(
            f"{repository} is not empty and no model repository.",
            hint="Give --output an empty or new folder, or one that holds models.",
            code="not_a_repository",
        )


def _holds_other_things(repository: Path) -> bool:
    if not repository.is_dir() or any(repository.glob(RECORD_NAME)):
        return False
    own = [path for path in repository.iterdir() if path.name[0] != "." and path.name not in OF_A_DISK]
    models = (f"*/{CONFIG_NAME}", "*/[0-9]*")
    return bool(own) and not any(found for pattern in models for found in repository.glob(pattern))


def _chosen(config: DeployConfig, only: list[str] | None, layout: Layout) -> list[str]:
    _refuse_shared_folders(config)
    unknown = [model_id for model_id in only or [] if model_id not in config.models]
    if unknown:
        raise UsageError(
            f"There is no model {unknown[0]!r} in the configuration.",
            hint=f"Configured are: {', '.join(config.models) or 'none'}.",
            code="unknown_model",
        )
    chosen = list(dict.fromkeys(only)) if only is not None else list(config.models)
    fixed = [model_id for model_id in chosen if has_fixed_names(config.models[model_id], layout)]
    if len(fixed) > 1:
        raise UsageError(
            f"The {layout} layout holds one model, not {len(fixed)}.",
            why="Its folder names are fixed.",
            hint="Name one with --model.",
            code="one_model_only",
        )
    return chosen


def _refuse_shared_folders(config: DeployConfig) -> None:
    """`a` writes the folder `a-preprocessing`, so that cannot be a model id beside it."""
    kinds = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
    taken = {f"{model_id}-{kind}": model_id for model_id in config.models for kind in kinds}
    for model_id in config.models:
        if model_id in taken:
            raise ConfigError(
                f"The model ids {taken[model_id]!r} and {model_id!r} clash.",
                why=f"The first one is rendered as {taken[model_id]} and {model_id}, among others.",
                hint="Rename one of them in deploy/config.json.",
                code="model_id_clash",
            )


def _targets(
    model_id: str,
    config: ModelConfig,
    home: Home,
    repository: Path,
    trtllm_version: str | None,
    layout: Layout,
) -> list[Target]:
    """The versions of a model, the newest last."""
    targets = []
    for version, path in sorted({**config.older_versions, config.version: config.model_path}.items()):
        package = _package(model_id, config, home.resolve(path))
        used = trtllm_version or package.manifest.runtime.tensorrt_llm
        targets.append(Target(model_id, config, package, version, repository, used, layout))
    return targets


def _report(
    repository: Path, models: list[ModelFiles], changes: Changes, *, dry_run: bool, with_diff: bool
) -> RenderReport:
    return RenderReport(
        repository=repository,
        models=[model.model_id for model in models],
        written=list(changes.written),
        unchanged=changes.unchanged,
        removed=changes.removed,
        dry_run=dry_run,
        diff="\n".join(diff(repository, changes)) if with_diff else "",
    )


def _package(model_id: str, config: ModelConfig, folder: Path) -> Package:
    """One of the model's packages. Raises ConfigError where the config says another type or split."""
    package = load_package(folder)
    layout = package.manifest.layout
    found = {
        "dtype": layout.dtype,
        "tensor_parallel_size": layout.tp_size,
        "pipeline_parallel_size": layout.pp_size,
    }
    for key, value in found.items():
        if key in config.model_fields_set and getattr(config, key) != value:
            raise ConfigError(
                f"models.{model_id}.{key} is {getattr(config, key)}, but the package has {value}.",
                why=f"{package.folder} was converted that way.",
                hint=f"Correct {key} in deploy/config.json, or convert again with the other value.",
                code="config_contradicts_package",
            )
    return package
