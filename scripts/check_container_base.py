"""Checks, while Dockerfile.triton is built, that the base image is what the compatibility table says.

    python scripts/check_container_base.py --tag 26.07

An engine loads only in the TensorRT-LLM that built it: a base with other contents than its row would make
engines that the service cannot load, and that would come out only on the GPU machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from builder.compat import Container, containers
from runtime.launchers.machine import installed_version

RELEASE_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"
PYTHON_PROBE = "import platform; print(platform.python_version())"


@dataclass(frozen=True)
class Base:
    """What an image says of itself; None where it does not say."""

    triton: str | None
    tensorrt_llm: str | None
    python: str | None


def inspect_base(settings: Mapping[str, str]) -> Base:
    """The versions in this image: its release variable, and its own `python3`."""
    done = subprocess.run(["python3", "-c", PYTHON_PROBE], capture_output=True, text=True, check=False)
    return Base(
        settings.get(RELEASE_VARIABLE),
        installed_version("tensorrt_llm", settings),
        done.stdout.strip() or None,
    )


def problems(tag: str, base: Base, table: Sequence[Container]) -> list[str]:
    """Everything in which the base differs from the table's row for `tag`; empty when it fits."""
    row = next((row for row in table if row.triton == tag), None)
    if row is None:
        known = ", ".join(row.triton for row in table)
        return [f"The compatibility table has no Triton {tag}; it has {known}."]
    expected = Base(row.triton, row.tensorrt_llm, row.python)
    return [
        f"{name}: the table says {wanted} for Triton {tag}, the image has {found or 'none'}."
        for name, wanted, found in (
            (RELEASE_VARIABLE, expected.triton, base.triton),
            ("tensorrt_llm", expected.tensorrt_llm, base.tensorrt_llm),
            ("Python", _minor(expected.python), _minor(base.python)),
        )
        if wanted != found
    ]


def _minor(version: str | None) -> str | None:
    """3.12 of 3.12.3: security updates of the base image's system change the last part."""
    return ".".join(version.split(".")[:2]) if version else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tag", required=True, help="release of the Triton image, such as 26.07")
    parser.add_argument("--unknown", choices=("refuse", "accept"), default="refuse")
    options = parser.parse_args(arguments)
    found = problems(options.tag, inspect_base(os.environ), containers())
    for problem in found:
        print(problem, file=sys.stderr)
    if found and options.unknown == "refuse":
        print("  next: choose a known TRITON_TAG, or build with UNKNOWN_BASE=accept.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
