"""A Hugging Face hub on a local port: the calls that a download makes, and its ways to refuse."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {"org/gated": (403, "GatedRepo"), "org/missing": (404, "RepoNotFound")}


@contextmanager
def fake_hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories; gives the endpoint and the list of downloaded files."""
    downloads: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models").strip("/")
            owner, name, *rest = path.split("/")
            model = f"{owner}/{name}"
            if model in REFUSALS:
                self._send(REFUSALS[model][0], b"", {"X-Error-Code": REFUSALS[model][1]}, body)
            elif model not in repositories:
                self._send(404, b"", {}, body)
            elif rest[:1] == ["resolve"]:
                self._send_file(repositories[model] / "/".join(rest[2:]), body)
            elif rest[1:] and rest[1] not in ("main", COMMIT):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
            elif rest[:1] == ["tree"]:
                self._send(200, _tree(repositories[model]), {"Content-Type": "application/json"}, body)
            else:
                self._send(200, _description(model, repositories[model]), {}, body)

        def _send_file(self, path: Path, body: bool) -> None:
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            content = path.read_bytes()
            if body:
                downloads.append(path.name)
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", downloads
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _description(model: str, folder: Path) -> bytes:
    siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
    return json.dumps(
        {"id": model, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
    ).encode()


def _tree(folder: Path) -> bytes:
    files = [
        {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name}
        for path in sorted(folder.iterdir())
    ]
    return json.dumps(files).encode()
