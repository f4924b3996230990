"""Schemathesis reads the served schema and holds every route to it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.proxy.stack import MODEL, Stack

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "ignored_auth",
    "unsupported_method",
)
# A timeoutMs of 1 is allowed and passes before the first token.
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 504]
"""
LONGEST_SECONDS = 120


def with_model_ids(document: dict[str, Any]) -> dict[str, Any]:
    """The schema with the one model there is: random ids would meet nothing but 404."""
    schemas = document["components"]["schemas"]
    for name, field in (
        ("InferenceRequest", "modelId"),
        ("ChatRequest", "model"),
        ("CompletionRequest", "model"),
    ):
        schemas[name]["properties"][field]["enum"] = [MODEL]
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"]["enum"] = [MODEL]
    return document


async def test_every_route_keeps_its_schema(stack: Stack, tmp_path: Path) -> None:
    stack.script("ok", stays_ready=True)
    _, served = await stack.get("/openapi.json")
    schema = tmp_path / "openapi.json"
    schema.write_text(json.dumps(with_model_ids(served)))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        str(schema),
        f"--url={stack.url}",
        f"--header=X-API-Key: {stack.key}",
        f"--checks={','.join(CHECKS)}",
        "--phases=coverage,fuzzing",
        "--max-examples=6",
        "--seed=1",
        "--no-color",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), LONGEST_SECONDS)
    assert process.returncode == 0, output.decode()[-8000:]
    assert f"Tested: {len(served['paths'])}" in output.decode()
    assert stack.triton.requests
