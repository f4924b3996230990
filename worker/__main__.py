"""`python -m worker --fd N --engine NAME --package DIR`: one engine in a process, started by the bridge."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from common.errors import EnvironmentProblem, EwError
from worker import protocol
from worker.lifeline import end_with_bridge, end_with_server
from worker.protocol import Failure
from worker.serving import Adapter, Connection, Inbox, Server

LOG = logging.getLogger("worker")
ADAPTERS = {
    "cpu": "worker.openvino.adapter",
    "cuda-vllm": "worker.vllm.adapter",
    "cuda-trt": "worker.trtllm.load",
    "cuda-hf": "worker.hf.load",
}


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {options.name} %(levelname)s %(message)s"
    )
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    # Ctrl-C reaches the whole process group; the bridge ends this worker when Triton has drained.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection, inbox = Connection(socket.socket(fileno=options.fd)), Inbox()
    end_with_bridge(connection, inbox)
    end_with_server()
    adapter = _load(connection, options.engine, options.package, json.loads(options.options))
    if adapter is None:
        return 1
    LOG.info("Ready: %s", adapter.ready)
    Server(connection, inbox, adapter).serve_forever()
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="socket to the bridge")
    parser.add_argument("--engine", required=True, help="one of: " + ", ".join(ADAPTERS))
    parser.add_argument("--package", type=Path, required=True, help="package folder")
    parser.add_argument("--options", default="{}", help="engine options as JSON")
    parser.add_argument("--name", default="worker", help="name in log lines")
    return parser.parse_args(arguments)


def _load(connection: Connection, engine: str, package: Path, options: Mapping[str, Any]) -> Adapter | None:
    """The engine, ready to serve; or None after the bridge was told why not."""
    try:
        return load_adapter(engine, package, options)
    except EwError as error:
        LOG.error("%s", error)
        failure = Failure(error.code, str(error), error.hint)
    except Exception as error:  # whatever an engine raises at start-up must reach Triton's load error
        LOG.exception("The engine did not start.")
        failure = Failure("engine_start", f"The {engine} engine did not start: {error!r}")
    connection.send(protocol.encode_failure(failure))
    return None


def load_adapter(engine: str, package: Path, options: Mapping[str, Any]) -> Adapter:
    """Import and start the adapter of `engine`.

    Raises:
        EnvironmentProblem: there is no such engine.
        EwError: the engine cannot run this package.
    """
    if engine not in ADAPTERS:
        raise EnvironmentProblem(
            f"There is no engine {engine!r}.",
            hint=f"Engines of this worker: {', '.join(ADAPTERS)}.",
            code="engine_unknown",
        )
    module = importlib.import_module(ADAPTERS[engine])
    return cast(Adapter, module.load(package, options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
