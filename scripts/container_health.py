"""The containers' HEALTHCHECK: 0 when the service answers that it is ready. Standard library only.

It runs every few seconds beside the service, so it imports next to nothing. EW_HEALTH_URL names another
address than the default port's.
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8080/health/ready"
TIMEOUT_SECONDS = 4.0


def trouble(url: str) -> str:
    """Why the service is not ready, or ""."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "127.0.0.1", address.port or 80, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", address.path or "/")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"{url}: {error}"
    finally:
        connection.close()
    return "" if status == 200 else f"{url}: HTTP {status}"


if __name__ == "__main__":
    sys.exit(trouble(os.environ.get("EW_HEALTH_URL") or DEFAULT_URL) or 0)
