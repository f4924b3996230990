"""The Python models that turn text into token ids and back: parameters, code, tokenizer files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from builder.package import Package
from builder.pbtxt import TEMPLATES
from builder.repository_target import Target
from common.errors import PackageError, RepositoryError
from common.paths import SOURCE_ROOT

DECODING = ("common/__init__.py", "common/detokenize.py", "common/errors.py")
CHAT = ("proxy/__init__.py", "proxy/chat.py")
STOPS = ("proxy/__init__.py", "proxy/stops.py")
STREAM_STARTS = "shared/stream_starts.py"
BLS_THREADS_PER_SLOT = 2
TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_JSON,
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)


def preprocessing_parameters(target: Target) -> dict[str, Any]:
    return {
        "tokenizer_dir": "tokenizer",
        "add_special_tokens": target.config.triton.add_special_tokens,
        "multimodal_model_path": None,
        "gpt_model_path": None,
        "max_num_images": None,
        **prompt_parameters(target),
    }


def prompt_parameters(target: Target) -> dict[str, Any]:
    settings = target.config.triton
    return {
        "apply_chat_template": settings.apply_chat_template,
        "truncation": settings.truncation,
        "max_input_len": target.config.max_input_len,
    }


def preprocessing_files(target: Target) -> dict[str, bytes]:
    code = python_model("preprocessing", (*DECODING, *CHAT), STREAM_STARTS)
    return {**code, **tokenizer_files(target.package, TOKENIZER_FILES)}


def postprocessing_parameters(target: Target) -> dict[str, Any]:
    return {"tokenizer_dir": "tokenizer", "skip_special_tokens": target.config.triton.skip_special_tokens}


def postprocessing_files(target: Target) -> dict[str, bytes]:
    code = python_model("postprocessing", DECODING, STREAM_STARTS)
    return {**code, **tokenizer_files(target.package, (TOKENIZER_JSON,))}


def bls_parameters(target: Target) -> dict[str, Any]:
    settings = target.config.triton
    return {
        "accumulate_tokens": settings.accumulate_tokens,
        "tensorrt_llm_model_name": target.folder("tensorrt_llm"),
        "tensorrt_llm_draft_model_name": None,
        "multimodal_encoders_name": None,
        "preprocessing_model_name": target.folder("preprocessing"),
        "tokenizer_dir": "tokenizer",
        "skip_special_tokens": settings.skip_special_tokens,
        # Requests beyond the engine's own batch can wait in it, where they are scheduled best.
        "max_concurrent_requests": BLS_THREADS_PER_SLOT * target.config.max_batch_size,
    }


def bls_files(target: Target) -> dict[str, bytes]:
    code = python_model("tensorrt_llm_bls", (*DECODING, *STOPS))
    return {**code, **tokenizer_files(target.package, (TOKENIZER_JSON,))}


def python_model(kind: str, modules: Iterable[str], *beside: str) -> dict[str, bytes]:
    """The Python files of a text model, and the modules of ours that it imports, under their own names.

    Args:
        beside: files of other template folders that go beside its own.

    Raises:
        RepositoryError: the template folder has no model.py.
    """
    sources = [*sorted((TEMPLATES / kind).glob("*.py")), *(TEMPLATES / name for name in beside)]
    own = {source.name: source.read_bytes() for source in sources}
    if "model.py" not in own:
        raise RepositoryError(f"{TEMPLATES / kind} has no model.py.", hint="Restore the checkout.")
    return {**own, **{name: (SOURCE_ROOT / name).read_bytes() for name in modules}}


def tokenizer_files(package: Package, names: Iterable[str]) -> dict[str, bytes]:
    """What there is of `names` in the package's tokenizer folder.

    Raises:
        PackageError: there is no tokenizer.json.
    """
    files = dict(_existing(package.tokenizer, names))
    if TOKENIZER_JSON not in files:
        raise PackageError(
            f"{package.tokenizer} has no tokenizer.json.",
            why="The text models tokenize with the tokenizers library, which reads this file.",
            hint="Add a tokenizer.json to the source checkpoint and convert it again.",
            code="tokenizer_missing",
        )
    return {f"tokenizer/{name}": content for name, content in files.items()}


def _existing(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        path = folder / name
        if path.is_file():
            yield name, path.read_bytes()
