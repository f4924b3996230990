"""tritonserver's OpenTelemetry options, from the variables that the proxy follows, too."""

from __future__ import annotations

from collections.abc import Mapping

ONLY_WITH_CONTEXT = 0  # the proxy decides what is traced; its trace context makes tritonserver trace as well


def trace_options(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Options that send spans where OTEL_EXPORTER_OTLP_ENDPOINT says; none when it is not set."""
    endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
    if not endpoint and (base := environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")):
        endpoint = base.rstrip("/") + "/v1/traces"
    if not endpoint or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ()
    settings = (
        "mode=opentelemetry",
        f"rate={ONLY_WITH_CONTEXT}",
        "level=TIMESTAMPS",
        f"opentelemetry,url={endpoint}",
        "opentelemetry,resource=service.name=ew-tritonserver",
    )
    return tuple(f"--trace-config={setting}" for setting in settings)
