"""A model repository as lint sees it: folders, parsed configurations, lines."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.lint.rules import RULES, Finding
from builder.pbtxt import CONFIG_NAME, model_config_messages, parse_config
from common.errors import RepositoryError

PLACEHOLDER = re.compile(r"\$\{(\w*)\}?")
POSITION = re.compile(r"(\d+):\d+\s*:?\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Options:
    """What lint may take for granted.

    Attributes:
        check_paths: look for tokenizers, engines and packages; off for the repository of another machine.
        trtllm_version: TensorRT-LLM of the container that will serve.
        flavour: what the container is made for: trtllm, vllm, or "" for neither; None: not known.
        import_with: a Python that imports each model.py, which runs the repository's code; None: nothing
            is executed.
    """

    check_paths: bool = True
    trtllm_version: str | None = None
    flavour: str | None = None
    import_with: str | None = None


@dataclass(frozen=True)
class Model:
    """One model folder; `config` is a parsed ModelConfig."""

    folder: Path
    text: str
    config: Any

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def file(self) -> str:
        return f"{self.name}/{CONFIG_NAME}"

    @property
    def is_ensemble(self) -> bool:
        return bool(self.config.platform == "ensemble" or self.config.HasField("ensemble_scheduling"))

    @property
    def is_engine(self) -> bool:
        """Whether this is the engine's contract, by whatever it is served."""
        return bool(self.config.backend == "tensorrtllm" or "gpt_model_type" in self.config.parameters)

    @property
    def is_decoupled(self) -> bool:
        return bool(self.config.model_transaction_policy.decoupled)

    @property
    def instances(self) -> int:
        return sum(max(group.count, 1) for group in self.config.instance_group) or 1

    @property
    def versions(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and path.name.isdigit())

    @property
    def served(self) -> list[Path]:
        """The version folders that Triton serves under the version policy: by default the newest alone."""
        newest_first = sorted(self.versions, key=lambda path: int(path.name), reverse=True)
        policy = self.config.version_policy
        if policy.HasField("all"):
            return newest_first
        if policy.HasField("specific"):
            return [path for path in newest_first if int(path.name) in policy.specific.versions]
        return newest_first[: policy.latest.num_versions or 1]

    def parameter(self, key: str) -> str | None:
        """A parameter's text; None where it is missing."""
        value = self.config.parameters.get(key) if key in self.config.parameters else None
        return None if value is None else str(value.string_value)

    def tensors(self, kind: str) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in getattr(self.config, kind)}

    def name_of(self, path: Path) -> str:
        """A file of the model, relative to the repository."""
        return f"{self.name}/{path.relative_to(self.folder).as_posix()}"

    def find(self, rule: str, message: str, *, at: str = "", subject: str = "") -> Finding:
        """A finding in config.pbtxt, at the first line that holds `at`."""
        return Finding(RULES[rule], self.file, line_of(self.text, at), message, subject or at)


@dataclass(frozen=True)
class Repository:
    """All models that could be read, and what was found while reading."""

    root: Path
    options: Options
    models: dict[str, Model] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)  # folders whose configuration is no protobuf


def load_repository(root: Path, options: Options) -> Repository:
    """Read every model folder of a repository.

    Raises:
        RepositoryError: there is no such folder, or no model in it.
    """
    folders = sorted(path for path in root.iterdir() if _is_model_folder(path)) if root.is_dir() else []
    if not folders:
        raise RepositoryError(
            f"There is no model repository in {root}.",
            hint="Name the folder that holds the model folders, or make one with ./ew render.",
            code="no_repository",
        )
    repository = Repository(root, options)
    for folder in folders:
        _load_model(folder, repository)
    repository.findings.extend(_names_that_clash(folders))
    return repository


def line_of(text: str, needle: str) -> int:
    """The first line with `needle` between quotes, or at all; 1 where it is nowhere."""
    if not needle:
        return 1
    for pattern in (f'"{needle}"', needle):
        position = text.find(pattern)
        if position >= 0:
            return text.count("\n", 0, position) + 1
    return 1


def type_name(tensor: Any) -> str:
    name: str = model_config_messages().DataType.Name(tensor.data_type)
    return name


def _is_model_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _load_model(folder: Path, repository: Repository) -> None:
    path, file = folder / CONFIG_NAME, f"{folder.name}/{CONFIG_NAME}"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        repository.findings.append(Finding(RULES["EW101"], file, 1, f"{folder.name} has no {CONFIG_NAME}"))
        repository.unread.add(folder.name)
        return
    except (OSError, UnicodeDecodeError) as error:
        repository.findings.append(Finding(RULES["EW102"], file, 1, f"not readable: {error}"))
        repository.unread.add(folder.name)
        return
    left = list(_placeholders(text, file))
    repository.findings.extend(left)
    try:
        config = parse_config(text, source=file)
    except RepositoryError as error:
        repository.unread.add(folder.name)
        finding = _syntax_error(file, error.why)
        if not any(other.line == finding.line for other in left):
            repository.findings.append(finding)
        return
    repository.models[folder.name] = Model(folder, text, config)


def _placeholders(text: str, file: str) -> list[Finding]:
    """Placeholders outside parameter values; what those mean depends on the parameter."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        code = line.split("#", 1)[0]
        if "string_value" not in code:
            found += [_left(file, number, match) for match in PLACEHOLDER.finditer(code)]
    return found


def _left(file: str, line: int, match: re.Match[str]) -> Finding:
    return Finding(RULES["EW103"], file, line, f"{match[0]} is not filled", match[1])


def _syntax_error(file: str, why: str) -> Finding:
    position = POSITION.match(why)
    line, message = (int(position[1]), position[2]) if position else (1, why)
    return Finding(RULES["EW102"], file, line, message.strip())


def _names_that_clash(folders: list[Path]) -> list[Finding]:
    seen: dict[str, str] = {}
    clashes = []
    for folder in folders:
        other = seen.setdefault(folder.name.lower(), folder.name)
        if other != folder.name:
            message = f"{folder.name} and {other} differ in case only"
            clashes.append(Finding(RULES["EW108"], f"{folder.name}/{CONFIG_NAME}", 1, message))
    return clashes
