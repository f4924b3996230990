"""`ew.json`: what a package is, where it came from, and the digest of every file in it.

The models here are the only definition; `manifest.schema.json` beside this file is generated from them
(`python -m builder.manifest`), and a test keeps it fresh.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common import atomic
from common.errors import PackageError

MANIFEST_NAME = "ew.json"
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")
SCHEMA_VERSION = 1
HASH_BLOCK = 4 * 2**20

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tool(Record):
    name: Literal["ew"] = "ew"
    version: str


class SourceFile(Record):
    """A weight file of the source as it was when it was read."""

    name: str
    bytes: int
    modified_ns: int = Field(description="Modification time; with the size it tells an unchanged file.")


class Source(Record):
    model: str = Field(description="What was asked for: a local folder or a hub id.")
    kind: Literal["path", "hub"]
    path: str = Field(description="The folder that was read.")
    revision: str | None = Field(default=None, description="Commit of the hub repository.")
    digest: str = Field(description="SHA-256 over config, index, weight headers and samples of the weights.")
    files: list[SourceFile]


class Model(Record):
    architecture: str
    family: str
    model_type: str | None = None
    quantization: str | None = None
    reasons: dict[str, str] = Field(description="Why each detected value is what it is.")


class Sizes(Record):
    """Limits the package is planned and built for; lengths in tokens."""

    max_batch_size: int = Field(ge=1)
    max_input_len: int = Field(ge=1)
    max_output_len: int = Field(ge=1)

    @property
    def max_seq_len(self) -> int:
        return self.max_input_len + self.max_output_len


class Layout(Record):
    dtype: str
    tp_size: int = Field(ge=1)
    pp_size: int = Field(ge=1)

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size


class RuntimeTarget(Record):
    era: Literal["engine", "pytorch"]
    tensorrt_llm: str
    container: str | None = None
    reason: str


class EngineInfo(Record):
    """`built`: engine/ is there. `pending`: a GPU machine must run `command`. `none`: nothing to build."""

    state: Literal["built", "pending", "none"]
    reason: str
    command: list[str] = Field(default_factory=list, description="What finishes a pending engine.")
    build_options: dict[str, list[str]] = Field(default_factory=dict)
    tensorrt_llm: str | None = None
    tensorrt: str | None = None
    gpu: str | None = None
    compute_capability: str | None = None


class Keys(Record):
    """Content addresses: same key, same bytes."""

    checkpoint: str = Sha256
    engine: str | None = None


class FileEntry(Record):
    sha256: str = Sha256
    bytes: int = Field(ge=0)


class Manifest(Record):
    schema_version: Literal[1] = 1
    tool: Tool
    created: str = Field(description="UTC time of the first complete write; not part of any key.")
    keys: Keys
    source: Source
    model: Model
    layout: Layout
    sizes: Sizes
    runtime: RuntimeTarget
    plan: dict[str, Any] = Field(description="Summary of `ew plan` for this package.")
    engine: EngineInfo
    files: dict[str, FileEntry] = Field(description="Every file by its path inside the package.")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a package folder.

    Raises:
        PackageError: no folder, no manifest (`not_a_package`) or one that is not valid (`manifest_invalid`).
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise not_a_package(folder) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, str(error)) from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise _invalid(path, f"{place}: {first['msg']}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make `folder` a package: atomically, and only after everything else in it is on the disk."""
    atomic.remove_leftovers(folder / MANIFEST_NAME)
    atomic.write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))


def not_a_package(folder: Path) -> PackageError:
    """The error for a folder without a manifest; tells the common mix-ups apart."""
    hint = "Make a package: ./ew convert-trt --model HF_FOLDER --output DIR"
    if not folder.is_dir():
        return PackageError(f"There is no package folder {folder}.", hint=hint, code="package_missing")
    return PackageError(
        f"{folder} is not a package.", why=_look_like(folder), hint=hint, code="not_a_package"
    )


def _look_like(folder: Path) -> str:
    if (folder / "checkpoint").is_dir():
        return "It has no ew.json: its conversion did not finish. Running it again goes on from there."
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "It has no ew.json."
    if "architectures" in config:
        return "It is a Hugging Face checkpoint that has not been converted."
    if "pretrained_config" in config:
        return "It is a bare TensorRT-LLM engine without ew.json."
    return (
        "It is a bare TensorRT-LLM checkpoint without ew.json."
        if "mapping" in config
        else "It has no ew.json."
    )


def _invalid(path: Path, why: str) -> PackageError:
    return PackageError(
        f"{path} is not a valid manifest.",
        why=why,
        hint="Convert the model again with --force.",
        code="manifest_invalid",
    )


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `ew.json`."""
    document = Manifest.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ew.json", **document}


if __name__ == "__main__":
    atomic.write_json(SCHEMA_FILE, schema())
