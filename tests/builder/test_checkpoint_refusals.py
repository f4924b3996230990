"""Weights that do not fit their config are refused before a byte is written, each with its reason."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.checkpoint import write_checkpoint
from builder.families import Layout
from builder.inspect import read_config_object
from builder.pickles import PickleFile
from common.errors import CheckpointError, EwError, UnsupportedModelError
from common.tensors import Array, TensorFile, TensorSpec, TensorWriter
from tests.builder.golden import GOLDEN, described

SOURCE = GOLDEN / "yi" / "hf"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of a small model that a test may damage."""
    folder = tmp_path / "model"
    shutil.copytree(SOURCE, folder)
    return folder


def weights(folder: Path) -> dict[str, tuple[TensorSpec, Array]]:
    file = TensorFile(folder / "model.safetensors")
    return {
        name: (TensorSpec(info.dtype, info.shape), file.view(name)) for name, info in file.tensors.items()
    }


def rewrite(folder: Path, tensors: dict[str, tuple[TensorSpec, Array]]) -> None:
    specs = {name: spec for name, (spec, _) in tensors.items()}
    with TensorWriter(folder / "model.safetensors", specs) as writer:
        for name, (_, value) in tensors.items():
            writer.write(name, value)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refusal(folder: Path, **arguments: Any) -> EwError:
    output = folder.parent / "output"
    with pytest.raises(EwError) as caught:
        write_checkpoint(folder, output, Layout(), **arguments)
    assert not output.exists()
    return caught.value


def test_missing_weight(model: Path) -> None:
    tensors = weights(model)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    rewrite(model, tensors)
    error = refusal(model)
    assert error.code == "weights_missing"
    assert "1 of 21 weights are missing, first 'model.layers.1.mlp.up_proj.weight'" in str(error)


def test_missing_layer(model: Path) -> None:
    change_config(model, num_hidden_layers=3)
    assert "9 of 30 weights are missing" in str(refusal(model))


def test_surplus_weights(model: Path) -> None:
    change_config(model, num_hidden_layers=1)
    error = refusal(model)
    assert error.code == "weights_surplus"
    assert "9 weights have no place" in str(error)


def test_buffers_are_no_surplus(model: Path) -> None:
    tensors = weights(model)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = (
        TensorSpec("F32", (4,)),
        np.ones(4, np.float32),
    )
    rewrite(model, tensors)
    write_checkpoint(model, model.parent / "output", Layout())
    expected = json.loads((SOURCE.parent / "tp1pp1" / "tensors.json").read_text())
    assert described(model.parent / "output" / "rank0.safetensors") == expected["rank0.safetensors"]


def test_shape_that_contradicts_the_config(model: Path) -> None:
    change_config(model, vocab_size=300)
    error = refusal(model)
    assert error.code == "shape_mismatch"
    assert "[288, 64]; config.json makes it [300, 64]" in str(error)


def test_integer_weights(model: Path) -> None:
    tensors = weights(model)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = (TensorSpec("I8", tensors[name][0].shape), tensors[name][1].astype(np.int8))
    rewrite(model, tensors)
    error = refusal(model)
    assert isinstance(error, UnsupportedModelError)
    assert "stored as I8" in str(error)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no config.json"):
        read_config_object(tmp_path)


@pytest.mark.parametrize(("text", "part"), [("{", "not readable JSON"), ("[]", "not a JSON object")])
def test_broken_config(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=part):
        read_config_object(tmp_path)


def test_folder_without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert refusal(model).code == "weights_missing"


def test_truncated_weights(model: Path) -> None:
    path = model / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    assert refusal(model).code == "safetensors_broken"


# Pickles. Their stream is written by hand, as PyTorch writes it, so that no test needs PyTorch.


class Named:
    """Pickles as the global MODULE.NAME."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickles as a call of a global."""

    def __init__(self, function: Named, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


class Stored:
    """Pickles as a reference to a storage of the archive."""

    def __init__(self, kind: str, key: str, items: int) -> None:
        self.pid = ("storage", Named("torch", kind), key, "cpu", items)


PythonPickler: Any = vars(pickle)["_Pickler"]


class TorchPickler(PythonPickler):  # type: ignore[misc]
    """The Python pickler: only it can write an arbitrary global."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Stored) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def archive(
    path: Path, state: Any, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        with file.open("archive/data.pkl", "w") as member:
            TorchPickler(member, 2).dump(state)
        for key, data in storages.items():
            file.writestr(f"archive/data/{key}", data)
    return path


REBUILD = Named("torch._utils", "_rebuild_tensor_v2")


def tensor(kind: str, key: str, shape: tuple[int, ...], stride: tuple[int, ...], first: int = 0) -> Call:
    items = int(np.prod(shape))
    return Call(REBUILD, Stored(kind, key, items), first, shape, stride, False, OrderedDict())


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


@pytest.fixture
def pickled(model: Path) -> Path:
    """The model with its weights in two pickles."""
    tensors = weights(model)
    names = sorted(tensors)
    for number, part in enumerate((names[:10], names[10:]), 1):
        state = OrderedDict(
            (
                name,
                tensor("BFloat16Storage", str(key), tensors[name][0].shape, strides(tensors[name][0].shape)),
            )
            for key, name in enumerate(part)
        )
        data = {str(key): tensors[name][1].tobytes() for key, name in enumerate(part)}
        archive(model / f"pytorch_model-{number:05}-of-00002.bin", state, data)
    (model / "model.safetensors").unlink()
    return model


def test_pickles_need_a_flag(pickled: Path) -> None:
    error = refusal(pickled)
    assert error.code == "pickle_refused"
    assert "--allow-pickle" in error.hint and "safetensors" in error.hint


def test_pickles_convert_like_safetensors(pickled: Path) -> None:
    output = pickled.parent / "output"
    write_checkpoint(pickled, output, Layout(tp_size=2), allow_pickle=True)
    expected = json.loads((SOURCE.parent / "tp2pp1" / "tensors.json").read_text())
    assert {name: described(output / name) for name in expected} == expected


def test_tensor_twice(pickled: Path) -> None:
    shutil.copy(pickled / "pytorch_model-00001-of-00002.bin", pickled / "pytorch_model.bin")
    assert refusal(pickled, allow_pickle=True).code == "tensor_twice"


def test_parameters_and_views_are_read(tmp_path: Path) -> None:
    inner = tensor("FloatStorage", "0", (2, 2), (2, 1), first=1)
    state = {"x": Call(Named("torch._utils", "_rebuild_parameter"), inner, True, OrderedDict())}
    file = PickleFile(archive(tmp_path / "x.bin", state, {"0": np.arange(6, dtype=np.float32).tobytes()}))
    np.testing.assert_array_equal(file.view("x"), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("state", "part"),
    [
        ({"x": Call(Named("os", "system"), "touch hacked")}, "os.system"),
        ({"x": Call(Named("builtins", "eval"), "1")}, "builtins.eval"),
        ({"x": Call(Named("torch", "load"), "y")}, "torch.load"),
        ({"x": Named("torch.nn", "Linear")}, "torch.nn.Linear"),
        ({"x": 5}, "'x' is not a tensor"),
        ([1, 2], "more than weights"),
        ({"x": tensor("FloatStorage", "0", (2, 3), (1, 2))}, "not contiguous"),
        ({"x": tensor("FloatStorage", "0", (99,), (1,))}, "reaches beyond"),
        ({"x": tensor("FloatStorage", "0", (1,), (1,), first=-1)}, "reaches beyond"),
        ({"x": tensor("FloatStorage", "7", (1,), (1,))}, "reaches beyond"),
    ],
)
def test_anything_but_tensors_is_refused(tmp_path: Path, state: Any, part: str) -> None:
    path = archive(tmp_path / "x.bin", state, {"0": bytes(24)})
    with pytest.raises(CheckpointError, match="cannot be read safely") as caught:
        PickleFile(path)
    assert part in caught.value.why
    assert not Path("hacked").exists()


def test_old_format_and_compressed_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.bin").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(CheckpointError, match="cannot be read safely") as caught:
        PickleFile(tmp_path / "old.bin")
    assert "zip format" in caught.value.why
    state = {"x": tensor("FloatStorage", "0", (6,), (1,))}
    packed = archive(tmp_path / "packed.bin", state, {"0": bytes(24)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        PickleFile(packed)
