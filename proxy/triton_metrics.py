"""tritonserver's own metrics, shown beside the proxy's: the proxy is the only port that need be reachable."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from common.errors import EwError
from proxy.upstream import Pool

TIMEOUT_SECONDS = 2.0
UP_COMMENTS = (
    "# HELP ew_tritonserver_up Whether tritonserver answers with its metrics",
    "# TYPE ew_tritonserver_up gauge",
)


class TritonMetrics:
    """The exposition text of every tritonserver; `urls` are the addresses of their metrics ports."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._pools = tuple(Pool(url) for url in urls)

    async def use(self, urls: Iterable[str]) -> None:
        """Ask these servers from now on."""
        old, self._pools = self._pools, tuple(Pool(url) for url in urls)
        await asyncio.gather(*(pool.close() for pool in old))

    async def text(self) -> bytes:
        """What the servers report now, and for each whether it answered; empty without servers."""
        if not self._pools:
            return b""
        texts = await asyncio.gather(*(_scrape(pool) for pool in self._pools))
        up = [
            f'ew_tritonserver_up{{tritonserver="{n}"}} {text is not None:d}' for n, text in enumerate(texts)
        ]
        lines = [*UP_COMMENTS, *up, *merged([text or "" for text in texts])]
        return "\n".join([*lines, ""]).encode()

    async def close(self) -> None:
        await asyncio.gather(*(pool.close() for pool in self._pools))


def merged(texts: list[str]) -> list[str]:
    """One text of several: each family once. With more than one server, samples say which one's they are."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for number, text in enumerate(texts):
        label = f'tritonserver="{number}"' if len(texts) > 1 else ""
        comments: list[str] = []
        samples: list[str] = []
        for line in text.splitlines():
            if line.startswith("# "):
                comments, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
                if line.split(" ", 2)[1] not in [known.split(" ", 2)[1] for known in comments]:
                    comments.append(line)
            elif line:
                samples.append(_with_label(line, label))
    return [line for comments, samples in families.values() for line in (*comments, *samples)]


async def _scrape(pool: Pool) -> str | None:
    try:
        status, body = await pool.request("GET", "/metrics", timeout=TIMEOUT_SECONDS)
    except (EwError, asyncio.TimeoutError):
        return None
    return body.decode("utf-8", "replace") if status == 200 else None


def _with_label(sample: str, label: str) -> str:
    if not label:
        return sample
    name, brace, rest = sample.partition("{")
    if brace:
        return f"{name}{{{label},{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
