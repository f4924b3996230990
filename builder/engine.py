"""The engine stage: build it here, take up what was built elsewhere, or say the command that builds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from builder import build_flags, llm_args
from builder.cache import PackageIndex, content_key, link_part
from builder.compat import container_for
from builder.engine_build import Built, read_built, run_build
from builder.engine_command import remote_command
from builder.engine_env import BuildEnvironment, build_environment
from builder.manifest import EngineInfo, FileEntry, Manifest, write_manifest
from builder.package import CHECKPOINT, ENGINE, LLM_ARGS, QUANTIZED
from builder.prepare import Prepared
from builder.prequantized import QUANT_CONFIG
from builder.request import Progress
from builder.workspace import Workspace
from common import atomic
from common.errors import PackageError


def engine_key(prepared: Prepared, capability: str | None) -> str:
    """Content address of an engine: checkpoint, sizes, options, TensorRT-LLM version and GPU generation."""
    return content_key(
        checkpoint=prepared.key,
        sizes=prepared.sizes.model_dump(),
        options=effective(prepared),
        tensorrt_llm=prepared.target.tensorrt_llm,
        capability=capability,
    )


def effective(prepared: Prepared) -> build_flags.BuildOptions:
    return build_flags.effective_options(
        prepared.options, quantized=prepared.request.quantization is not None
    )


def outlook(prepared: Prepared, folder: Path) -> EngineInfo:
    """What is still to do after the checkpoint."""
    version, stage = prepared.target.tensorrt_llm, prepared.request.stage
    if prepared.target.era == "pytorch":
        if prepared.request.quantization and not (folder / QUANTIZED / QUANT_CONFIG).is_file():
            why = f"{prepared.request.quantization} weights are made in the container"
            return EngineInfo(
                state="pending", reason=why, command=remote_command(prepared, folder, effective(prepared))
            )
        reason = f"TensorRT-LLM {version} with the PyTorch runtime loads the Hugging Face checkpoint itself"
        return EngineInfo(state="none", reason=reason, tensorrt_llm=version)
    command = remote_command(prepared, folder, effective(prepared))
    if stage == "checkpoint":
        return EngineInfo(state="none", reason="--stage checkpoint", command=command)
    _, why = build_environment()
    if not why and not (folder / CHECKPOINT).is_dir():
        why = f"{prepared.request.quantization} weights are made in the container"
    return EngineInfo(state="pending", reason=why or "the build has not finished", command=command)


def write_llm_args(prepared: Prepared, space: Workspace) -> bool:
    """PyTorch era: `llm_args.json` instead of an engine. True when changed, which unmakes the package."""
    if prepared.target.era != "pytorch" or prepared.request.stage != "engine":
        return False
    path = space.folder / LLM_ARGS
    model, revision = _loaded_model(prepared, space.folder)
    arguments = llm_args.make_llm_args(
        model, revision, prepared.manifest_layout, prepared.sizes, prepared.options
    )
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == arguments:
        return False
    space.forget_manifest()
    atomic.write_json(path, arguments)
    return True


def _loaded_model(prepared: Prepared, folder: Path) -> tuple[str, str | None]:
    """What tensorrt_llm.LLM loads: the quantized weights of the package, a hub id, or the source folder."""
    if prepared.request.quantization:
        return str((folder / QUANTIZED).resolve()), None
    if prepared.source.kind == "hub":
        return prepared.source.model, prepared.source.revision
    return str(prepared.inspection.folder.resolve()), None


def is_current(prepared: Prepared, manifest: Manifest, environment: BuildEnvironment | None) -> bool:
    """Whether the package's engine is what would be built now, on this machine's GPU if it has one."""
    engine = manifest.engine
    if engine.state != "built" or manifest.keys.engine != engine_key(prepared, engine.compute_capability):
        return False
    return environment is None or environment.gpus[0].compute_capability == engine.compute_capability


def next_engine(
    prepared: Prepared, space: Workspace, index: PackageIndex, manifest: Manifest, report: Progress
) -> EngineInfo:
    """The engine that a sealed package should have: the present one, one from elsewhere, or built now.

    Raises:
        EnvironmentProblem: the build failed; the package stays as it was.
    """
    present = manifest.engine
    if prepared.request.stage != "engine" or prepared.target.era != "engine":
        return present if present.state == "built" else outlook(prepared, space.folder)
    environment, _ = build_environment()
    if is_current(prepared, manifest, environment):
        return present
    if present.state != "built":
        built = _taken_up(prepared, space, can_build=environment is not None)
        if built is not None:
            return _info(prepared, built, "built on a GPU machine with the printed command")
    if environment is None or not (space.folder / CHECKPOINT).is_dir():
        return outlook(prepared, space.folder)
    return _make(prepared, space, index, manifest, environment, report)


def _taken_up(prepared: Prepared, space: Workspace, *, can_build: bool) -> Built | None:
    """An engine built elsewhere; one that does not match is an error only where none can be built."""
    try:
        return read_built(space.folder / ENGINE, prepared.config, prepared.sizes)
    except PackageError:
        if can_build:
            return None
        raise


def _make(
    prepared: Prepared,
    space: Workspace,
    index: PackageIndex,
    manifest: Manifest,
    environment: BuildEnvironment,
    report: Progress,
) -> EngineInfo:
    """Link an equal engine or build one in scratch space, then put it in the place of the old one."""
    found = index.find_engine(engine_key(prepared, environment.gpus[0].compute_capability))
    if found is not None:
        link_part(found, ENGINE, space.fresh_scratch(ENGINE))
        info = found.manifest.engine
    else:
        built = run_build(prepared, space, environment, effective(prepared), report)
        info = _info(prepared, built, f"built here by {environment.program}")
    _drop_old(prepared, space, manifest)
    space.place(ENGINE)
    return info


def _drop_old(prepared: Prepared, space: Workspace, manifest: Manifest) -> None:
    """While the engine is exchanged the manifest must not promise the old one."""
    if manifest.engine.state == "built":
        rest = without_engine(manifest.files)
        pending = {"engine": outlook(prepared, space.folder), "files": rest}
        write_manifest(space.folder, manifest.model_copy(update=pending))


def without_engine(files: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """The entries whose content does not depend on the engine and its arguments."""
    changing = (f"{ENGINE}/", LLM_ARGS)
    return {name: entry for name, entry in files.items() if not name.startswith(changing)}


def _info(prepared: Prepared, built: Built, reason: str) -> EngineInfo:
    container = container_for(built.tensorrt_llm)
    return EngineInfo(
        state="built",
        reason=reason,
        build_options=effective(prepared),
        tensorrt_llm=built.tensorrt_llm,
        tensorrt=built.tensorrt or (container.tensorrt if container else None),
        gpu=built.gpu,
        compute_capability=built.compute_capability,
    )
