"""What a cluster decides and deploy/config.json does not say: `./ew k8s render --set NAME=VALUE`."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from common.config import StrictModel
from common.errors import UsageError
from runtime.launch import PROXY_DRAIN_SECONDS

SOURCE_PREFIX = "source."
IMAGE = re.compile(
    r"(?P<name>[\w./-]+(?::\d+/[\w./-]+)?)(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
QUANTITY = r"^\d+(\.\d+)?(Ki|Mi|Gi|Ti)$"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


class Values(StrictModel):
    """Times are in seconds; quantities are written as Kubernetes writes them (16Gi)."""

    namespace: str = Field("ew", pattern=DNS_LABEL, description="Namespace of everything.")
    image: str | None = Field(
        None, description="Image with tag or digest.  [default: ew:VERSION-cpu or ew:VERSION-tritonRELEASE]"
    )
    triton: str | None = Field(
        None, description="Triton release of the image, which says its TensorRT-LLM.  [default: the newest]"
    )
    pull_secret: str | None = Field(None, description="Secret for the image's registry.")
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="source or source.MODEL: Hugging Face id that the build job converts.  "
        "[default: what the package here was made from, if that is on the hub]",
    )
    plan_from: str | None = Field(
        None, description="Folder with the model's config.json to plan from, instead of asking the hub."
    )
    convert_options: str = Field("", description="More options for convert-trt, in quotes.")
    gpu: str | None = Field(
        None, description="GPU type of the pool, for example L40S; engines are built for it."
    )
    gpu_product: str | None = Field(
        None, description="The pool's label nvidia.com/gpu.product.  [default: the usual one of that type]"
    )
    gpus_per_node: int = Field(8, ge=1, le=16, description="GPUs of one node, for models on several nodes.")
    min_replicas: int = Field(
        0, ge=0, description="Fewest copies of the service.  [default: 2, on several nodes 1]"
    )
    max_replicas: int = Field(0, ge=0, description="Most copies.  [default: twice the fewest]")
    autoscaler: Literal["hpa", "keda", "none"] = Field(
        "hpa", description="hpa (needs prometheus-adapter), keda, or none: min_replicas copies."
    )
    prometheus: str = Field(
        "http://prometheus-operated.monitoring.svc:9090", description="Where keda asks for metrics."
    )
    waiting_target: int = Field(4, ge=1, description="Waiting requests a copy that call for another one.")
    kv_cache_target: float = Field(0.8, gt=0, le=1, description="Share of the KV cache in use that does so.")
    monitor: Literal["pod", "service", "none"] = Field(
        "pod", description="PodMonitor, ServiceMonitor, or none where there is no Prometheus operator."
    )
    keys_secret: str = Field("ew-keys", pattern=DNS_LABEL, description="Secret with keys.json.")
    hub_secret: str = Field("ew-hub", pattern=DNS_LABEL, description="Secret with HF_TOKEN; may be absent.")
    ssh_secret: str = Field("ew-ssh", pattern=DNS_LABEL, description="Secret with the ranks' ssh key.")
    storage: str | None = Field(
        None, pattern=QUANTITY, description="Size of the volume.  [default: by the plan]"
    )
    storage_class: str | None = Field(None, description="Storage class.  [default: the cluster's]")
    storage_access: Literal["ReadWriteMany", "ReadWriteOnce"] = Field(
        "ReadWriteMany", description="ReadWriteOnce where one copy is enough."
    )
    read_mib_per_second: int = Field(
        200, ge=1, description="How fast the volume reads; the time to load follows from it."
    )
    load_seconds: int | None = Field(None, ge=1, description="Time to load.  [default: by the plan]")
    drain_seconds: float = Field(
        max(120.0, PROXY_DRAIN_SECONDS), ge=0, description="How long running streams may take at the end."
    )
    lame_duck_seconds: float = Field(
        10, ge=0, description="How much of that, half at most, idle connections have for one more request."
    )
    pre_stop_seconds: int = Field(
        15, ge=5, description="Wait before the drain, until no new requests are sent here."
    )
    cpu: str | None = Field(
        None, pattern=r"^[1-9]\d*$", description="CPUs of one copy.  [default: by the plan]"
    )
    memory: str | None = Field(
        None, pattern=QUANTITY, description="Memory of one copy.  [default: by the plan]"
    )
    shm: str | None = Field(None, pattern=QUANTITY, description="/dev/shm.  [default: by the number of GPUs]")
    host: str = Field("0.0.0.0", description="Address the proxy listens on; :: for IPv6.")

    @field_validator("image")
    @classmethod
    def _is_pinned(cls, image: str | None) -> str | None:
        if image is None:
            return None
        match = IMAGE.fullmatch(image)
        if match is None or not (match["tag"] or match["digest"]) or match["tag"] == "latest":
            raise ValueError("an image needs a tag that is not latest, or a digest")
        return image


def parse_values(settings: tuple[str, ...]) -> Values:
    """Values from `NAME=VALUE` texts; the last of equal names holds.

    Raises:
        UsageError: not of that form, an unknown name, or a value that is not allowed.
    """
    fields: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(
                f"--set {setting} has no value.", hint="Write it like --set gpu=L40S.", code="bad_set"
            )
        if name == "source" or name.startswith(SOURCE_PREFIX):
            sources[name.removeprefix("source").removeprefix(".")] = value
        else:
            fields[_known(name)] = value
    try:
        return Values.model_validate({**fields, **({"sources": sources} if sources else {})})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"--set {name}={first['input']}: {first['msg']}.", code="bad_set") from None


def set_names() -> dict[str, str]:
    """Every name that --set takes, with its description."""
    names = {name: field.description or "" for name, field in Values.model_fields.items()}
    return {("source" if name == "sources" else name): text for name, text in names.items()}


def split_image(image: str) -> dict[str, str]:
    """An image reference in kustomize's words: newName, and newTag or digest."""
    match = IMAGE.fullmatch(image)
    assert match is not None  # Values refuses others
    if match["digest"]:
        return {"newName": match["name"], "digest": match["digest"]}
    return {"newName": match["name"], "newTag": match["tag"]}


def _known(name: str) -> str:
    if name in Values.model_fields and name != "sources":
        return name
    near = difflib.get_close_matches(name, set_names(), n=1)
    raise UsageError(
        f"--set knows no {name!r}.",
        hint=f"Did you mean {near[0]!r}?" if near else f"It knows {', '.join(set_names())}.",
        code="bad_set",
    )


def read_values(path: Path) -> tuple[str, ...]:
    """A file of `NAME=VALUE` lines; empty ones and those that begin with # are skipped.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read.", why=f"{error}.", code="bad_values_file") from None
    return tuple(line for line in lines if line and not line.startswith("#"))
