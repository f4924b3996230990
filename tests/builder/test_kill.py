"""kill -9 at random moments of a conversion: afterwards there is a whole package or none, never a bad one.

EW_KILLS sets how many interruptions (10 by default; the full run is 100).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.manifest import MANIFEST_NAME
from builder.package import load_package
from common.errors import PackageError
from common.tensors import TensorSpec, TensorWriter
from tests.builder.made import run

KILLS = int(os.environ.get("EW_KILLS", "10"))
OPTIONS: dict[str, Any] = {"tp_size": 2, "dtype": "float16"}
HIDDEN, INNER, LAYERS, VOCAB = 512, 1376, 6, 8000
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
}
LAYER: dict[str, tuple[int, ...]] = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
}


def _shapes() -> dict[str, tuple[int, ...]]:
    layers = {
        f"model.layers.{layer}.{name}.weight": shape
        for layer in range(LAYERS)
        for name, shape in LAYER.items()
    }
    ends = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    return {**ends, **layers, "model.norm.weight": (HIDDEN,)}


@pytest.fixture(scope="module")
def big_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 110 MB: large enough that most kills hit the writing."""
    folder = tmp_path_factory.mktemp("kill") / "hf"
    folder.mkdir()
    shapes, generator = _shapes(), np.random.default_rng(7)
    specs = {name: TensorSpec("F32", shape) for name, shape in shapes.items()}
    with TensorWriter(folder / "model.safetensors", specs) as writer:
        for name, shape in shapes.items():
            writer.write(name, generator.standard_normal(shape, np.float32))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def _convert(source: Path, output: Path) -> None:
    run(source, output, **OPTIONS)


def _kill_after(seconds: float, source: Path, output: Path) -> int:
    """Convert in a child and SIGKILL it after `seconds`; its exit code, -9 when the kill hit."""
    child = multiprocessing.get_context("fork").Process(target=_convert, args=(source, output))
    child.start()
    time.sleep(seconds)
    child.kill()
    child.join()
    return child.exitcode or 0


def _state_of(output: Path) -> str:
    """`whole` or `none`; a package that loads must verify, whatever happened before."""
    try:
        package = load_package(output)
    except PackageError as error:
        assert error.code in ("not_a_package", "package_missing")
        return "none"
    package.verify()
    return "whole"


@pytest.mark.timeout(1200)
def test_random_kills_leave_no_bad_package(big_source: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    expected = run(big_source, tmp_path / "reference" / "out", **OPTIONS).manifest
    duration = time.monotonic() - started
    assert expected is not None
    output, chance, states = tmp_path / "work" / "out", random.Random(), []
    for _ in range(KILLS):
        code = _kill_after(chance.uniform(0, 1.2 * duration), big_source, output)
        states.append((code, _state_of(output)))
        if states[-1][1] == "whole" or chance.random() < 0.3:
            shutil.rmtree(output, ignore_errors=True)
    last = run(big_source, output, **OPTIONS)
    package = load_package(output)
    package.verify()
    assert package.manifest.files == expected.files
    assert not (output / ".ew" / "state.json").exists()
    assert last.action in ("converted", "resumed")
    assert (-9, "none") in states


def test_kill_between_every_two_steps(big_source: Path, tmp_path: Path) -> None:
    """The moments that random kills may miss: just before and after the manifest appears."""
    output = tmp_path / "out"
    run(big_source, output, **OPTIONS)
    manifest = (output / MANIFEST_NAME).read_bytes()
    (output / MANIFEST_NAME).unlink()
    with pytest.raises(PackageError):
        load_package(output)
    assert run(big_source, output, **OPTIONS).action == "converted"
    again = json.loads((output / MANIFEST_NAME).read_bytes())
    before = json.loads(manifest)
    assert again["files"] == before["files"]
    assert again["keys"] == before["keys"]
