"""A tritonserver that answers the proxy only."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.e2e.proxy_process import proxy_process
from tests.e2e.test_proxy_styles import ENGINE
from tests.proxy.packages import write_package
from tests.worker.triton import Triton

pytestmark = pytest.mark.e2e
MODEL = "delta"


def test_inference_needs_the_header(tmp_path: Path) -> None:
    package, header = write_package(tmp_path / "package"), tmp_path / "header"
    header.write_text("ew-token: s3cret\n")
    header.chmod(0o600)
    triton = Triton(tmp_path / "triton", "--http-restricted-api=inference:ew-token=s3cret")
    try:
        triton.wait_ready()
        version = triton.add_model(f"{MODEL}-tensorrt_llm", package, backend="python")
        (version / "model.py").write_bytes(ENGINE.read_bytes())
        triton.load(f"{MODEL}-tensorrt_llm")
        body = {"input_ids": [5], "input_lengths": 1, "request_output_len": 2}
        direct = f"http://127.0.0.1:{triton.http_port}/v2/models/{MODEL}-tensorrt_llm/generate_stream"
        assert requests.post(direct, json=body, timeout=30).status_code == 403
        with proxy_process(tmp_path, {MODEL: package}, triton, f"--triton-header-file={header}") as (
            url,
            process,
        ):
            answer = requests.post(
                f"{url}/api/v1/inference",
                json={"modelId": MODEL, "prompt": "ab", "raw": True},
                timeout=30,
            )
            assert answer.json()["text"] == "abab"
            assert "s3cret" not in Path(f"/proc/{process.pid}/cmdline").read_text()
    finally:
        triton.stop()
