"""Checks of Python models and of what the text models need. Nothing is executed: files are parsed only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import lru_cache
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
PROMPT_PARAMETERS = ("add_special_tokens", "apply_chat_template", "truncation", "max_input_len")
# A file of ew's beside model.py -> what that model reads without asking.
OWN_UNGUARDED = {
    "prompts.py": ("tokenizer_dir", *PROMPT_PARAMETERS),
    "engine_calls.py": (
        *("tokenizer_dir", "skip_special_tokens", "accumulate_tokens", "max_concurrent_requests"),
        *("preprocessing_model_name", "tensorrt_llm_model_name"),
    ),
    "text_requests.py": ("skip_special_tokens", "max_queue_size"),
}


def check_python_model(model: Model, repository: Repository) -> Iterator[Finding]:
    if model.config.backend != "python":
        return
    role = _role(model)
    for folder in model.served:
        yield from _code(model, folder)
        if repository.options.check_paths and (role or model.parameter("tokenizer_dir")):
            yield from _tokenizer(model, folder)
    for key in _read_unguarded(model, role):
        if model.parameter(key) is None:
            yield model.find("EW405", f"{key} is missing", subject=key)
    if role:
        yield from _text_model(model, role)
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
        file = model.name_of(path)
        try:
            tree = _parsed(path.read_bytes(), path.name)
        except (SyntaxError, ValueError) as error:
            yield Finding(RULES["EW402"], file, getattr(error, "lineno", None) or 1, str(error))
            continue
        yield from _imports(tree, folder, file)
        if path == main and not _may_execute(tree):
            yield Finding(RULES["EW404"], file, 1, "no class TritonPythonModel with execute")


@lru_cache(maxsize=64)  # models import from the same few files beside them
def _parsed(source: bytes, file_name: str) -> ast.Module:
    return ast.parse(source, file_name)


def _imports(tree: ast.Module, folder: Path, file: str) -> Iterator[Finding]:
    """Imports at the top level; those inside a try or a function may be optional."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
            yield from _names_beside(node, folder, file)
        for name in names:
            if not _is_importable(name.split(".")[0], folder):
                yield Finding(RULES["EW403"], file, node.lineno, f"no module {name}", name)


def _names_beside(node: ast.ImportFrom, folder: Path, file: str) -> Iterator[Finding]:
    """Names imported from a file beside model.py must be in it."""
    source = folder / f"{str(node.module).replace('.', '/')}.py"
    defined = _defined_names(source) if source.is_file() else None
    for alias in node.names:
        if defined is not None and alias.name != "*" and alias.name not in defined:
            message = f"{source.name} has no {alias.name}"
            yield Finding(RULES["EW403"], file, node.lineno, message, alias.name)


def _defined_names(path: Path) -> set[str] | None:
    """What a module binds anywhere outside functions and classes; None where that cannot be told."""
    try:
        tree = _parsed(path.read_bytes(), path.name)
    except (SyntaxError, ValueError):
        return None
    visitor = _Bindings()
    visitor.visit(tree)
    return None if visitor.open_ended else visitor.names


class _Bindings(ast.NodeVisitor):
    """Collects the names that a module binds; `open_ended` where it may bind others too."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.open_ended = False

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.names.add(node.name)
        self.open_ended |= node.name == "__getattr__"

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_ClassDef = visit_FunctionDef

    def visit_Name(self, node: ast.Name) -> None:
        self.names.add(node.id)
        self.open_ended |= node.id in ("globals", "setattr", "exec")

    def visit_alias(self, node: ast.alias) -> None:
        self.names.add((node.asname or node.name).split(".")[0])
        self.open_ended |= node.name == "*"


def _is_importable(name: str, folder: Path) -> bool:
    beside = (folder / f"{name}.py").is_file() or (folder / name).is_dir()
    if beside or name in sys.stdlib_module_names or name in SERVING_MODULES:
        return True
    return PathFinder.find_spec(name) is not None


def _may_execute(tree: ast.Module) -> bool:
    """Whether TritonPythonModel has execute; a base class other than object may have it."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "TritonPythonModel":
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            own = any(isinstance(part, functions) and part.name == "execute" for part in node.body)
            return own or any(ast.unparse(base) != "object" for base in node.bases)
    return False


def _read_unguarded(model: Model, role: str) -> list[str]:
    """Parameters without which the model's initialize fails."""
    keys = dict.fromkeys(UNGUARDED.get(role, ()))
    for folder in model.served:
        for name, own in OWN_UNGUARDED.items():
            keys.update(dict.fromkeys(own if (folder / name).is_file() else ()))
    return list(keys)


def _text_model(model: Model, role: str) -> Iterator[Finding]:
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
