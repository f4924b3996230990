"""`python -m proxy`: the HTTP service in front of tritonserver."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

from common.errors import EwError
from proxy.settings import Settings

SECONDS = (
    *("header_hold", "load_wait", "request_timeout", "body_timeout", "write_timeout"),
    *("drain", "lame_duck"),
)


def main(arguments: list[str] | None = None) -> int:
    settings = parse_arguments(arguments)
    try:
        return serve(settings)
    except EwError as error:
        print(f"Error: {error}\n  next: {error.hint}", file=sys.stderr)
        return error.exit_code


def parse_arguments(arguments: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser("python -m proxy", description=__doc__)
    defaults = Settings(config="")
    parser.add_argument("--config", required=True, help="deploy/config.json")
    parser.add_argument("--triton", action="append", help="tritonserver's HTTP address; may be repeated")
    parser.add_argument(
        "--triton-metrics",
        action="append",
        metavar="URL",
        help="its metrics port, whose metrics /metrics shows too; repeatable",
    )
    parser.add_argument(
        "--routes",
        metavar="FILE",
        help="tritonservers and their models in JSON, read again when it changes; goes before all of these",
    )
    parser.add_argument(
        "--triton-header-file",
        metavar="FILE",
        help="holds NAME: VALUE, the header that tritonserver's --http-restricted-api asks for",
    )
    parser.add_argument("--keys", help="key file; without it every request is allowed")
    parser.add_argument("--model", action="append", dest="models", help="serve only this model; repeatable")
    parser.add_argument("--cors-origin", action="append", dest="cors_origins", help="allowed origin")
    for name in ("host", "log_level"):
        parser.add_argument(_flag(name), default=getattr(defaults, name))
    for name in ("port", "workers", "max_body_bytes", "max_queue", "max_per_key"):
        parser.add_argument(_flag(name), type=int, default=getattr(defaults, name))
    for name in SECONDS:
        parser.add_argument(_flag(name), type=float, default=getattr(defaults, name), metavar="SECONDS")
    values = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    return Settings.from_values(values)


def serve(settings: Settings) -> int:
    """Run until a signal; several workers share the port."""
    if settings.workers > 1 and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        with tempfile.TemporaryDirectory(prefix="ew-metrics-") as folder:
            # Set before the first import of prometheus_client, which reads it once.
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            return _run(settings)
    return _run(settings)


def _run(settings: Settings) -> int:
    from proxy.server import run_server

    return run_server(settings)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
