"""Checks of Python models and of what the text models need. Nothing is executed: files are parsed only."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from builder.lint.repository import Model, Repository
from builder.lint.rules import RULES, Finding

# Installed where models are served, not always where they are checked.
SERVING_MODULES = frozenset(
    (
        *("torch", "torchvision", "transformers", "tensorrt_llm", "tensorrt", "vllm", "cuda", "cupy", "nvtx"),
        *("mpi4py", "PIL", "numpy", "requests", "triton_python_backend_utils", "tritonclient", "tokenizers"),
        *("sentencepiece", "tiktoken", "jinja2", "soundfile", "packaging"),
    )
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
MODEL_NAMES = (
    "tensorrt_llm_model_name",
    "tensorrt_llm_draft_model_name",
    "multimodal_encoders_name",
    "preprocessing_model_name",
)
TENSORS = {
    "preprocessing": {
        "input": ("QUERY", "REQUEST_OUTPUT_LEN", "EMBEDDING_BIAS_WORDS", "EMBEDDING_BIAS_WEIGHTS"),
        "output": (
            "INPUT_ID",
            "DECODER_INPUT_ID",
            "REQUEST_INPUT_LEN",
            "REQUEST_DECODER_INPUT_LEN",
            "BAD_WORDS_IDS",
            "STOP_WORDS_IDS",
            "OUT_END_ID",
            "OUT_PAD_ID",
        ),
    },
    "postprocessing": {"input": ("TOKENS_BATCH", "SEQUENCE_LENGTH"), "output": ("OUTPUT",)},
}
UNGUARDED = {
    "preprocessing": ("tokenizer_dir", "multimodal_model_path"),
    "postprocessing": ("tokenizer_dir",),
}


def check_python_model(model: Model, repository: Repository) -> Iterator[Finding]:
    if model.config.backend == "vllm":
        yield from _vllm_arguments(model)
    if model.config.backend != "python":
        return
    folder = model.version_folder
    if folder is not None:
        yield from _code(model, folder)
    role = _role(model)
    if role:
        yield from _text_model(model, role)
        if repository.options.check_paths and folder is not None:
            yield from _tokenizer(model, folder)
    for key in MODEL_NAMES:
        name = model.parameter(key)
        known = {*repository.models, *repository.unread}
        if name and "${" not in name and name not in known:
            yield model.find("EW408", f"{key} is {name}, but there is no such model", at=name)


def _role(model: Model) -> str:
    """preprocessing or postprocessing, by name; ew's are called M-preprocessing, upstream's preprocessing."""
    return next((role for role in TENSORS if model.name.endswith(role)), "")


def _code(model: Model, folder: Path) -> Iterator[Finding]:
    main = folder / (model.config.default_model_filename or "model.py")
    if not main.is_file():
        yield model.find("EW401", f"there is no {folder.name}/{main.name}")
        return
    for path in sorted(folder.glob("*.py")):
        file = f"{model.name}/{path.relative_to(model.folder).as_posix()}"
        try:
            tree = ast.parse(path.read_bytes(), str(path))
        except SyntaxError as error:
            yield Finding(RULES["EW402"], file, error.lineno or 1, error.msg)
            continue
        yield from _imports(tree, folder, file)
        if path == main and not _has_execute(tree):
            yield Finding(RULES["EW404"], file, 1, "no class TritonPythonModel with execute")


def _imports(tree: ast.Module, folder: Path, file: str) -> Iterator[Finding]:
    """Imports at the top level; those inside a try or a function may be optional."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for name in names:
            if not _is_importable(name.split(".")[0], folder):
                yield Finding(RULES["EW403"], file, node.lineno, f"no module {name}", name)


def _is_importable(name: str, folder: Path) -> bool:
    beside = (folder / f"{name}.py").is_file() or (folder / name).is_dir()
    if beside or name in sys.stdlib_module_names or name in SERVING_MODULES:
        return True
    return PathFinder.find_spec(name) is not None


def _has_execute(tree: ast.Module) -> bool:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "TritonPythonModel":
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            return any(isinstance(part, functions) and part.name == "execute" for part in node.body)
    return False


def _text_model(model: Model, role: str) -> Iterator[Finding]:
    for key in UNGUARDED[role]:
        if model.parameter(key) is None:
            yield model.find("EW405", f"{key} is missing", subject=key)
    for kind, names in TENSORS[role].items():
        declared = model.tensors(kind)
        for name in names:
            if name not in declared:
                yield model.find("EW407", f"{kind} {name} is missing")


def _tokenizer(model: Model, folder: Path) -> Iterator[Finding]:
    given = model.parameter("tokenizer_dir")
    if given is None or "${" in given:
        return
    path = folder / given
    if not given or not any((path / name).is_file() for name in TOKENIZER_FILES):
        if _looks_like_hub_id(given):
            return
        yield model.find("EW406", f"there is no tokenizer in {given or '(empty)'}", at="tokenizer_dir")


def _looks_like_hub_id(given: str) -> bool:
    return given.count("/") == 1 and not given.startswith((".", "/", "~"))


def _vllm_arguments(model: Model) -> Iterator[Finding]:
    folder = model.version_folder
    if folder is None:
        return
    file = f"{model.name}/{folder.name}/model.json"
    try:
        arguments = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield Finding(RULES["EW409"], file, getattr(error, "lineno", 1), f"not readable: {error}")
        return
    if not isinstance(arguments, dict) or not arguments.get("model"):
        yield Finding(RULES["EW409"], file, 1, "it is no object with a model")
