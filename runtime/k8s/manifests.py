"""Kubernetes objects as rules see them: workloads with their pod templates, and how they find each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from common.errors import UsageError
from runtime.k8s.pods import Document

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
SELECTING_OPERATORS = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, values: value is not None,
    "DoesNotExist": lambda value, values: value is None,
}
# kind -> where its pod templates are, and what each is called
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "Deployment": {"": ("spec", "template")},
    "StatefulSet": {"": ("spec", "template")},
    "DaemonSet": {"": ("spec", "template")},
    "Job": {"": ("spec", "template")},
    "CronJob": {"": ("spec", "jobTemplate", "spec", "template")},
    "LeaderWorkerSet": {
        "leader": ("spec", "leaderWorkerTemplate", "leaderTemplate"),
        "worker": ("spec", "leaderWorkerTemplate", "workerTemplate"),
    },
    "Pod": {"": ()},
}


@dataclass(frozen=True)
class Pods:
    """One pod template and the object that it is part of."""

    owner: Document
    role: str
    template: Document

    @property
    def name(self) -> str:
        return f"{name_of(self.owner)}{f' ({self.role})' if self.role else ''}"

    @property
    def spec(self) -> Document:
        spec: Document = self.template.get("spec") or {}
        return spec

    @property
    def labels(self) -> dict[str, str]:
        return dict(at(self.template, "metadata", "labels") or {})

    @property
    def containers(self) -> list[Document]:
        return list(self.spec.get("containers") or [])

    @property
    def all_containers(self) -> list[Document]:
        return [*(self.spec.get("initContainers") or []), *self.containers]

    @property
    def server(self) -> Document | None:
        """The container that serves: the one that runs `ew start`."""
        return next((item for item in self.containers if "start" in arguments_of(item)[:1]), None)

    @property
    def is_job(self) -> bool:
        return self.owner.get("kind") in ("Job", "CronJob")

    def mount(self, container: Document, path: str) -> Document:
        """The container's volume mount that holds `path`; the innermost of several."""
        mounts: list[Document] = container.get("volumeMounts") or []
        holding = [item for item in mounts if f"{path}/".startswith(f"{item.get('mountPath')}/")]
        return max(holding, key=lambda item: len(str(item.get("mountPath"))), default={})

    def volume(self, name: str) -> Document:
        return next((item for item in self.spec.get("volumes") or [] if item.get("name") == name), {})


@dataclass(frozen=True)
class Manifests:
    """Everything of one rendering."""

    objects: tuple[Document, ...]

    def of_kind(self, *kinds: str) -> list[Document]:
        return [item for item in self.objects if item.get("kind") in kinds]

    def pods(self) -> Iterator[Pods]:
        for item in self.objects:
            for role, path in TEMPLATES.get(str(item.get("kind")), {}).items():
                template = at(item, *path)
                if isinstance(template, dict):
                    yield Pods(item, role, template)

    def servers(self) -> list[Pods]:
        return [pods for pods in self.pods() if pods.server is not None]

    def named(self, kind: str, name: str) -> Document | None:
        """Generated ConfigMaps are found by their whole name, hash included."""
        return next((item for item in self.of_kind(kind) if at(item, "metadata", "name") == name), None)


def parse_manifests(text: str, source: str) -> Manifests:
    """The objects of a text of YAML documents, lists taken apart; `source` is named in errors.

    Raises:
        UsageError: not YAML, or a document that is no Kubernetes object.
    """
    try:
        documents = [item for item in yaml.load_all(text, Loader=LOADER) if item is not None]
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not valid YAML.", why=f"{error}.", code="bad_yaml") from None
    objects: list[Document] = []
    for item in documents:
        is_list = isinstance(item, dict) and item.get("kind") == "List"
        objects += item.get("items") or [] if is_list else [item]
    for item in objects:
        if not (isinstance(item, dict) and item.get("kind") and item.get("apiVersion")):
            raise UsageError(f"{source} holds something that is no Kubernetes object.", code="bad_manifest")
    return Manifests(tuple(objects))


def at(document: Any, *path: str) -> Any:
    """What is at a path of keys; None where any is missing."""
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def name_of(item: Document) -> str:
    return f"{item.get('kind')}/{at(item, 'metadata', 'name')}"


def arguments_of(container: Document) -> list[str]:
    """`ew`'s arguments; the image's entry point is ew."""
    arguments = [str(part) for part in container.get("args") or []]
    command = [str(part) for part in container.get("command") or []]
    if command[:1] and command[0].endswith("ew"):
        return [*command[1:], *arguments]
    return [] if command else arguments


def option(arguments: list[str], name: str) -> str | None:
    """The value of `--name`, as one argument or two; the last one holds."""
    found = None
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            found = arguments[index + 1]
        elif argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
    return found


def options(arguments: list[str], name: str) -> list[str]:
    """The values of an option that may be repeated."""
    pairs = zip(arguments, arguments[1:], strict=False)
    return [value for key, value in pairs if key == name]


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) takes these labels; an empty one takes all."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(
        SELECTING_OPERATORS[rule["operator"]](labels.get(rule["key"]), rule.get("values") or [])
        for rule in selector.get("matchExpressions") or []
    )


def in_seconds(text: str | None, default: float) -> float:
    """A number of seconds in an argument."""
    try:
        return float(text) if text is not None else default
    except ValueError:
        return default
