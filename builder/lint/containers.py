"""`ew lint --container`: what an image tag says about the server."""

from __future__ import annotations

import re

from builder.compat import Container, containers, newest_container
from common.errors import UsageError


def container_of_tag(tag: str) -> tuple[Container, str | None]:
    """A Triton release by its image tag, and what the image is made for: trtllm, vllm, "", None: not said.

    `tag` is a whole image name (nvcr.io/nvidia/tritonserver:26.03-trtllm-python-py3), its tag or just 26.03.

    Raises:
        UsageError: that release is not known.
    """
    match = re.fullmatch(r"(?:.*:)?(\d\d\.\d\d)(?:-([\w.-]+))?", tag)
    found = next((row for row in containers() if match and row.triton == match[1]), None)
    if match is None or found is None:
        raise UsageError(
            f"{tag!r} is not a known Triton container.",
            hint=f"Known are {containers()[-1].triton} to {containers()[0].triton}, written like "
            f"{newest_container().tag}.",
            code="unknown_container",
        )
    if match[2] is None:
        return found, None
    return found, next((kind for kind in ("trtllm", "vllm") if kind in match[2]), "")
