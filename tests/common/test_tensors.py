from __future__ import annotations

import errno
import importlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.casts import CASTS, STORED, cast, cast_into
from common.errors import CheckpointError, ResourceError
from common.tensors import (
    INDEX_NAME,
    Array,
    TensorFile,
    TensorFolder,
    TensorSpec,
    TensorWriter,
    encode_header,
    write_error,
)

SPECS = {"a": TensorSpec("F32", (2, 3)), "b": TensorSpec("BF16", (4,))}
VALUES: dict[str, Array] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([0x3F80, 0x4000, 0x4040, 0xBF80], np.uint16),
}


def write(path: Path, specs: dict[str, TensorSpec] = SPECS, values: dict[str, Array] = VALUES) -> Path:
    with TensorWriter(path, specs) as writer:
        for name in specs:
            writer.write(name, values[name])
    return path


def raw(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = TensorFile(write(tmp_path / "x.safetensors"))
    assert list(file) == ["a", "b"]
    assert file.tensors["b"].shape == (4,)
    np.testing.assert_array_equal(file.view("a"), VALUES["a"])
    np.testing.assert_array_equal(file.floats("b"), np.array([1, 2, 3, -1], np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_reference_library_reads_what_is_written(tmp_path: Path) -> None:
    safetensors = importlib.import_module("safetensors.numpy")
    specs = {
        "b": SPECS["a"],
        "a": TensorSpec("I64", (2,)),
        "s": TensorSpec("F32", ()),
        "e": TensorSpec("F16", (0, 2)),
    }
    values: dict[str, Array] = {
        "b": VALUES["a"],
        "a": np.array([1, 2]),
        "s": np.array(5, np.float32),
        "e": np.empty((0, 2), np.float16),
    }
    loaded = safetensors.load_file(write(tmp_path / "x.safetensors", specs, values))
    assert set(loaded) == set(specs)
    for name in specs:
        np.testing.assert_array_equal(loaded[name], values[name])


def test_views_survive_the_file_object(tmp_path: Path) -> None:
    view = TensorFile(write(tmp_path / "x.safetensors")).view("a")
    assert view.sum() == 15
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_dropped_pages_can_be_read_again(tmp_path: Path) -> None:
    values = np.arange(100_000, dtype=np.float32)
    specs = {"x": TensorSpec("F32", values.shape)}
    file = TensorFile(write(tmp_path / "x.safetensors", specs, {"x": values}))
    before = file.view("x").copy()
    file.drop(0, file.size)
    file.drop(5000, 5001)
    np.testing.assert_array_equal(file.view("x"), before)


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (b"{", b"", "not JSON"),
        (b"[1]", b"", "not a JSON object"),
        (b'{"a":1,"a":2}', b"", "occurs twice"),
        ({"a": {"dtype": "F32"}}, b"", "lacks"),
        ({"a": 5}, b"", "lacks"),
        ({"a": entry("F32", [1], 0, 4)}, b"", "truncated"),
        ({"a": entry("F32", [1], 0, 4)}, b"12345", "1 bytes after the last tensor"),
        ({"a": entry("F32", [2], 0, 4)}, b"1234", r"'a' F32 \[2\] needs 8 bytes, has 4"),
        ({"a": entry("F32", [-1], 0, 4)}, b"1234", "whole numbers"),
        ({"a": entry("F32", [1], -4, 0)}, b"1234", "whole numbers"),
        ({"a": entry("Q7", [1], 0, 4)}, b"1234", "unknown dtype 'Q7'"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)}, b"123456", "overlaps"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)}, b"123456789012", "hole"),
    ],
)
def test_inconsistent_headers_are_refused(tmp_path: Path, header: Any, data: bytes, why: str) -> None:
    path = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError, match="not a complete safetensors file") as caught:
        TensorFile(path)
    assert re.search(why, caught.value.why)
    assert str(path) in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 2**40), struct.pack("<Q", 50) + b"{}"])
def test_files_too_short_for_their_header_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        TensorFile(path)


@given(cut=st.integers(min_value=1, max_value=200))
def test_every_truncation_is_noticed(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    content = write(folder / "x.safetensors").read_bytes()
    (folder / "x.safetensors").write_bytes(content[:-cut])
    with pytest.raises(CheckpointError):
        TensorFile(folder / "x.safetensors")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        TensorFile(tmp_path / "no.safetensors")
    with pytest.raises(ResourceError, match="cannot be read"):
        TensorFile(tmp_path)


def folder_with(tmp_path: Path, weight_map: dict[str, str], files: dict[str, dict[str, TensorSpec]]) -> Path:
    for name, specs in files.items():
        write(tmp_path / name, specs)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_index_joins_shards(tmp_path: Path) -> None:
    files = {"1.safetensors": {"a": SPECS["a"]}, "2.safetensors": {"b": SPECS["b"]}}
    folder = TensorFolder(folder_with(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, files))
    assert sorted(folder) == ["a", "b"] and len(folder) == 2 and "a" in folder
    assert folder.file_of("b").path.name == "2.safetensors"
    assert folder.info("a").shape == (2, 3)
    assert folder.floats("b")[1] == 2


def test_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"2\.safetensors is missing") as caught:
        TensorFolder(
            folder_with(
                tmp_path, {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": {"a": SPECS["a"]}}
            )
        )
    assert "1 tensors" in caught.value.why


def test_index_that_does_not_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not match") as caught:
        TensorFolder(folder_with(tmp_path, {"c": "1.safetensors"}, {"1.safetensors": {"a": SPECS["a"]}}))
    assert "'c' in 1.safetensors" in caught.value.why


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        TensorFolder(tmp_path)


def test_index_cannot_leave_its_folder(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        TensorFolder(tmp_path)


def test_folder_without_index(tmp_path: Path) -> None:
    assert len(TensorFolder(tmp_path)) == 0
    write(tmp_path / "1.safetensors", {"a": SPECS["a"]})
    write(tmp_path / "2.safetensors", {"b": SPECS["b"]})
    assert len(TensorFolder(tmp_path)) == 2
    write(tmp_path / "3.safetensors", {"b": SPECS["b"]})
    with pytest.raises(CheckpointError, match=r"2\.safetensors and in 3\.safetensors"):
        TensorFolder(tmp_path)
    write(tmp_path / "model.safetensors")
    assert list(TensorFolder(tmp_path).files) == ["model.safetensors"]


def test_writer_checks_order_size_and_completeness(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="'b' comes before 'a'"), TensorWriter(path, SPECS) as writer:
        writer.write("b", VALUES["b"])
    with pytest.raises(ValueError, match="needs 24 bytes"), TensorWriter(path, SPECS) as writer:
        writer.write("a", VALUES["a"][:1])
    with pytest.raises(ValueError, match="stored form"), TensorWriter(path, SPECS) as writer:
        writer.write("a", VALUES["b"])
    with pytest.raises(ValueError, match="1 tensors were not written"), TensorWriter(path, SPECS) as writer:
        writer.write("a", VALUES["a"])
    assert list(tmp_path.iterdir()) == []


def test_writer_takes_pieces_and_strided_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with TensorWriter(path, {"a": SPECS["a"]}, {"format": "pt"}) as writer:
        writer.write("a", (np.asfortranarray(VALUES["a"][row : row + 1]) for row in range(2)))
    file = TensorFile(path)
    assert file.metadata == {"format": "pt"}
    np.testing.assert_array_equal(file.view("a"), VALUES["a"])


def test_full_disk_and_permission_are_resource_errors(tmp_path: Path) -> None:
    full = write_error(tmp_path / "x", OSError(errno.ENOSPC, "No space left on device"))
    assert (full.code, full.exit_code) == ("disk_full", 8)
    assert str(tmp_path) in full.hint
    denied = write_error(tmp_path / "x", PermissionError(errno.EACCES, "Permission denied"))
    assert denied.code == "permission"
    with pytest.raises(ResourceError, match="cannot be written"), TensorWriter(tmp_path / "no" / "x", SPECS):
        pass


def test_data_is_aligned() -> None:
    for name in ("a", "ab", "abc", "ü"):
        assert len(encode_header({name: SPECS["a"]})) % 8 == 0


ALL_16 = np.arange(65536, dtype=np.uint16)


def reference(kind: str) -> Array:
    """Every bit pattern of a 16-bit type as float32, without the code under test."""
    if kind == "F16":
        return ALL_16.view(np.float16).astype(np.float32)
    return (ALL_16.astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(values: Array) -> Array:
    """Round up where the part cut off is more than half, or half and the part kept is odd."""
    bits = values.view(np.uint32)
    kept, cut = bits >> 16, bits & 0xFFFF
    up = (cut > 0x8000) | ((cut == 0x8000) & (kept & 1 == 1))
    rounded: Array = (kept + up).astype(np.uint16)
    return rounded


@pytest.mark.filterwarnings("ignore:overflow")
def test_bf16_to_f16_for_every_value() -> None:
    values = reference("BF16")
    numbers = ~np.isnan(values)
    result = cast(ALL_16, "BF16", "F16")
    np.testing.assert_array_equal(result[numbers], values[numbers].astype(np.float16))
    assert np.signbit(result[numbers]).tolist() == np.signbit(values[numbers]).tolist()
    assert np.isnan(result[~numbers]).all()


def test_f16_to_bf16_for_every_value() -> None:
    values = reference("F16")
    numbers = ~np.isnan(values)
    result = cast(ALL_16.view(np.float16), "F16", "BF16")
    np.testing.assert_array_equal(result[numbers], round_to_bf16(values)[numbers])
    assert np.isnan(cast(result[~numbers], "BF16", "F32")).all()


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_widening_is_exact_and_narrowing_gives_it_back(kind: str) -> None:
    stored = ALL_16.view(STORED[kind])
    wide = cast(stored, kind, "F32")
    numbers = ~np.isnan(wide)
    np.testing.assert_array_equal(wide[numbers], reference(kind)[numbers])
    back = cast(wide, "F32", kind).view(np.uint16)
    np.testing.assert_array_equal(back[numbers], ALL_16[numbers])
    np.testing.assert_array_equal(
        cast(cast(stored, kind, "F64"), "F64", kind).view(np.uint16)[numbers], ALL_16[numbers]
    )


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_f32_to_bf16_rounds_to_nearest_even(values: list[float]) -> None:
    array = np.array(values, np.float32)
    numbers = ~np.isnan(array)
    result = cast(array, "F32", "BF16")
    np.testing.assert_array_equal(result[numbers], round_to_bf16(array)[numbers])
    assert np.isnan(cast(result, "BF16", "F32")[~numbers]).all()


def test_overflow_becomes_infinity() -> None:
    huge = np.array([1e38, -1e38, 3.4e38, 65520.0, 65519.0], np.float32)
    assert cast(huge, "F32", "F16").tolist() == [np.inf, -np.inf, np.inf, np.inf, 65504.0]
    assert cast(cast(huge[2:3], "F32", "BF16"), "BF16", "F32").tolist() == [np.inf]
    assert cast(np.array([1e300]), "F64", "F32").tolist() == [np.inf]


@pytest.mark.parametrize(
    ("source", "target"), [("F32", "F16"), ("F64", "F16"), ("BF16", "F16"), ("F64", "F32")]
)
def test_numbers_that_became_infinite_are_counted(source: str, target: str) -> None:
    largest = 1e300 if (source, target) == ("F64", "F32") else 1e30
    numbers = np.array([1.0, largest, np.inf, 1e-30, -largest, np.nan, -np.inf] * 50_000)
    values = cast(numbers, "F64", source)
    result = np.empty(values.shape, STORED[target])
    assert cast_into(values, source, result, target) == 100_000
    assert cast_into(values[:1], source, result[:1], target) == 0


@pytest.mark.parametrize(("source", "target"), sorted(CASTS))
def test_pieces_do_not_show(source: str, target: str) -> None:
    numbers = np.random.default_rng(0).standard_normal(200_001).astype(np.float32)
    values = cast(numbers, "F32", source)
    result = np.empty(values.shape, STORED[target])
    cast_into(values, source, result, target)
    half = cast(values[100_000:], source, target)
    np.testing.assert_array_equal(result[100_000:], half)


def test_same_dtype_is_not_copied() -> None:
    assert cast(VALUES["a"], "F32", "F32") is VALUES["a"]


def test_shape_and_strides_of_the_source_do_not_matter() -> None:
    values = VALUES["a"].T
    result = cast(values, "F32", "F16")
    assert result.shape == (3, 2)
    np.testing.assert_array_equal(result, values.astype(np.float16))
