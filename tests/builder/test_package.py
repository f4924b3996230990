"""Packages: loading, verifying, listing, and the published schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.manifest import SCHEMA_FILE, schema
from builder.package import find_packages, load_package
from common.errors import PackageError
from tests.builder.made import run


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    return run(source, tmp_path / "packages" / "one").folder


def _remove(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def _shorten(folder: Path) -> None:
    path = folder / "checkpoint" / "rank0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(folder: Path) -> None:
    path = folder / "checkpoint" / "rank0.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _add(folder: Path) -> None:
    (folder / "checkpoint" / "rank1.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "text", "seen_on_load"),
    [
        (_remove, "is missing", True),
        (_shorten, "bytes instead of", True),
        (_flip_a_bit, "SHA-256 differs", False),
        (_add, "is not in the manifest", False),
    ],
)
def test_damage_is_found(damage: Callable[[Path], None], text: str, seen_on_load: bool, folder: Path) -> None:
    load_package(folder).verify()
    damage(folder)
    with pytest.raises(PackageError) as caught:
        package = load_package(folder)
        assert not seen_on_load
        package.verify()
    assert caught.value.code == "package_damaged"
    assert text in caught.value.why


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_manifest_cannot_name_files_outside(name: str, folder: Path) -> None:
    path = folder / "ew.json"
    document = json.loads(path.read_text())
    document["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    path.write_text(json.dumps(document))
    with pytest.raises(PackageError, match="outside the package"):
        load_package(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 2}'])
def test_broken_manifest(text: str, folder: Path) -> None:
    (folder / "ew.json").write_text(text)
    with pytest.raises(PackageError) as caught:
        load_package(folder)
    assert caught.value.code == "manifest_invalid"


def test_list_finds_packages_and_leaves_out_damaged_ones(source: Path, folder: Path) -> None:
    second = run(source, folder.parent / "two", tp_size=2).folder
    (folder.parent / "not-a-package").mkdir()
    assert [package.folder for package in find_packages(folder.parent)] == [folder, second]
    _remove(second)
    assert [package.folder for package in find_packages(folder.parent)] == [folder]
    assert [package.folder for package in find_packages(folder)] == [folder]


def test_published_schema_is_fresh() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == schema()
