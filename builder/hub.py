"""Where the source is: a local folder, or a Hugging Face repository that is fetched first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import CheckpointError, NetworkError, UsageError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
CONFIG_FILES = (
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "additional_chat_templates/*",
)
WEIGHT_FILES = ("*.safetensors",)
PICKLE_FILES = ("pytorch_model*.bin",)
# a second copy of the weights in another layout, and what lies in subfolders
NOT_WANTED = ("consolidated*", "*/*.safetensors", "*/*.bin")


@dataclass(frozen=True)
class SourceFolder:
    """A folder to read from; `revision` is the commit when it came from the hub."""

    model: str
    folder: Path
    kind: str
    revision: str | None = None


def is_local(model: str) -> bool:
    """Whether `model` names a folder here: it exists, or it is written like a path and not like a hub id."""
    return Path(model).expanduser().exists() or not HUB_ID.fullmatch(model)


def find_source(
    model: str,
    *,
    revision: str | None = None,
    weights: bool = True,
    allow_pickle: bool = False,
    on_download: Callable[[], None] | None = None,
) -> SourceFolder:
    """The folder of a model, downloading it from the hub if it is not a local one.

    Raises:
        CheckpointError: a path that does not exist.
        NetworkError: gated, unknown or unreachable repository.
    """
    if not is_local(model):
        if on_download:
            on_download()
        return _download(model, revision, weights=weights, allow_pickle=allow_pickle)
    if revision is not None:
        raise UsageError(
            f"--revision has no meaning for the local folder {model}.",
            hint="Leave it out.",
            code="revision_of_path",
        )
    folder = Path(model).expanduser()
    if not folder.exists():
        raise CheckpointError(
            f"There is no folder {model}.",
            hint="Give the folder that holds config.json, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct.",
            code="source_missing",
        )
    return SourceFolder(model, folder, "path")


def _download(model: str, revision: str | None, *, weights: bool, allow_pickle: bool) -> SourceFolder:
    """Fetch into the Hugging Face cache; complete files are not fetched again."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    patterns = [*CONFIG_FILES, *(WEIGHT_FILES if weights else ()), *(PICKLE_FILES if allow_pickle else ())]
    try:
        folder = Path(
            api.snapshot_download(
                model, revision=revision, allow_patterns=patterns, ignore_patterns=list(NOT_WANTED)
            )
        )
    except GatedRepoError:
        raise _gated(model) from None
    except RepositoryNotFoundError:
        raise _not_found(model) from None
    except RevisionNotFoundError:
        raise NetworkError(
            f"{model} has no revision {revision!r}.",
            hint="Give a branch, tag or commit of it.",
            code="hub_revision",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise _unreachable(model, error) from None
    return SourceFolder(model, folder, "hub", folder.name)


def _gated(model: str) -> NetworkError:
    return NetworkError(
        f"{model} is gated.",
        why="Its owner gives access only after you accept the licence.",
        hint=f"Accept it at https://huggingface.co/{model}, then set HF_TOKEN or run: hf auth login",
        code="hub_gated",
    )


def _not_found(model: str) -> NetworkError:
    return NetworkError(
        f"{model} is neither a folder here nor a repository on the hub.",
        why="The hub does not know it, or it is private and no token was sent.",
        hint="Check the spelling; for a private repository set HF_TOKEN.",
        code="hub_not_found",
    )


def _unreachable(model: str, error: Exception) -> NetworkError:
    return NetworkError(
        f"{model} is not a folder here, and the hub cannot be reached.",
        why=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
        hint="Check the path, or the network and HF_ENDPOINT; a downloaded folder works offline.",
        code="hub_unreachable",
    )
