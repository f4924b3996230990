"""Whether the package index and the hub that are configured here can be reached."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from runtime.doctor.catalog import found
from runtime.doctor.finding import Finding

SECONDS = 4.0


def check_network() -> Iterator[Finding]:
    """Ask both at once; any HTTP answer counts as reached."""
    with ThreadPoolExecutor(2) as pool:
        index, hub = pool.submit(_problem, index_url()), pool.submit(_problem, hub_url())
    if index.result():
        yield found("index_unreachable", index.result())
    if hub.result():
        yield found("hub_unreachable", hub.result())


def index_url() -> str:
    """pip's index: from the environment, pip's configuration, or pip's own default."""
    configured = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_DEFAULT_INDEX")
    return configured or _pip_setting() or _pip_default()


def hub_url() -> str:
    from huggingface_hub import constants  # imported here: it takes a noticeable time

    return constants.ENDPOINT


def _pip_setting() -> str:
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _pip_default() -> str:
    code = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _problem(url: str) -> str:
    """Why `url` does not answer, or ""; the address without a password that may be in it."""
    import requests

    if not url:
        return ""
    try:
        requests.head(url, timeout=SECONDS)
    except requests.RequestException as error:
        return f"{without_password(url)}: {type(error).__name__}"
    return ""


def without_password(url: str) -> str:
    """https://user:secret@host/ -> https://host/"""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
