"""Keys: hashed at rest, private files, roles, reload without restart."""

from __future__ import annotations

import asyncio
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.cells import cell_len

from common.errors import ConfigError, UsageError
from common.paths import home
from proxy.keys import KeyStore, ensure_first_key
from tests.cli.ew import ew
from tests.proxy.stack import MODEL, Stack
from tests.proxy.test_cancel import until


def test_first_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "run" / "keys.json"
    first = ensure_first_key(path)
    secret = first.read_text().strip()
    assert ensure_first_key(path) == first
    assert first.read_text().strip() == secret
    for file in (path, first):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in path.read_text()
    key = KeyStore(path).verify(secret)
    assert key is not None and key.role == "admin"


def test_only_whole_keys_are_right(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    secret = store.add("a")
    assert store.verify(secret)
    for wrong in ("", secret[:-1], secret + "x", secret.upper()):
        assert store.verify(wrong) is None


def test_add_rotate_revoke(tmp_path: Path) -> None:
    store, other = KeyStore(tmp_path / "keys.json"), KeyStore(tmp_path / "keys.json")
    old = store.add("a")
    assert other.verify(old)
    new = store.rotate("a")
    assert other.verify(old) is None
    assert other.verify(new)
    store.revoke("a")
    assert other.verify(new) is None


def test_changes_at_once_all_count(tmp_path: Path) -> None:
    def add(number: int) -> str:
        return KeyStore(tmp_path / "keys.json").add(f"key-{number}")

    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(add, range(32)))
    store = KeyStore(tmp_path / "keys.json")
    assert all(store.verify(secret) for secret in secrets)


def test_mistakes_are_refused(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    store.add("a")
    with pytest.raises(UsageError, match="exists"):
        store.add("a")
    with pytest.raises(UsageError, match="role"):
        store.add("b", "root")
    with pytest.raises(UsageError, match="no key"):
        store.revoke("b")


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    store.add("a")
    store.path.chmod(0o644)
    with pytest.raises(ConfigError, match="other users"):
        KeyStore(store.path).records()


async def test_roles_and_reload_through_http(stack: Stack) -> None:
    assert stack.service.keys is not None
    secret = KeyStore(stack.service.keys.path).add("user")  # while the service runs
    headers = {"Authorization": f"Bearer {secret}"}
    async with stack.client.get(stack.url + "/api/v1/models", headers=headers) as answer:
        assert answer.status == 200
    url = f"{stack.url}/api/v1/models/{MODEL}/unload"
    async with stack.client.post(url, headers=headers) as answer:
        assert answer.status == 403
        assert (await answer.json())["error"]["code"] == "forbidden"
    assert not stack.triton.controls


async def test_requests_per_minute(stack: Stack) -> None:
    assert stack.service.keys is not None
    secret = stack.service.keys.add("slow", requests_per_minute=2)
    stack.script("a")
    body = {"modelId": MODEL, "prompt": "hi"}
    answers = [await stack.post("/api/v1/inference", body, **{"X-API-Key": secret}) for _ in range(3)]
    assert [status for status, _, _ in answers] == [200, 200, 429]
    assert 25 <= int(answers[-1][1]["Retry-After"]) <= 30


async def test_concurrency_of_one_key_leaves_other_keys_alone(stack: Stack) -> None:
    assert stack.service.keys is not None
    narrow = {"X-API-Key": stack.service.keys.add("narrow", max_concurrent=1)}
    stack.script("word " * 50, pace=0.02)
    body = {"modelId": MODEL, "prompt": "hi"}
    running = asyncio.ensure_future(stack.post("/api/v1/inference", body, **narrow))
    assert await until(lambda: bool(stack.triton.running))
    status, headers, data = await stack.post("/api/v1/inference", body, **narrow)
    assert (status, json.loads(data)["error"]["code"]) == (429, "too_many_requests")
    assert headers["Retry-After"]
    stack.triton.script.pace = 0.0
    assert (await stack.post("/api/v1/inference", body))[0] == 200
    assert (await running)[0] == 200
    assert (await stack.post("/api/v1/inference", body, **narrow))[0] == 200


def test_the_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EW_HOME", str(tmp_path))
    limits = ("--requests-per-minute", 60, "--max-concurrent", 8)
    made = ew("keys", "add", "alice", *limits, "--json").document
    listed = ew("keys", "list", "--json")
    assert made["key"] not in listed.out
    [alice] = listed.document["keys"]
    assert (alice["name"], alice["role"]) == ("alice", "inference")
    assert {60, 8} <= set(alice.values())
    ew("keys", "add", "张三")
    head, *rows = ew("keys", "list").out.splitlines()
    assert [row.split()[:4] for row in rows] == [
        ["alice", "inference", "60", "8"],
        ["张三", "inference", "-", "-"],
    ]
    assert {cell_len(row[: row.index("inference")]) for row in rows} == {head.index("role")}
    ew("keys", "revoke", "张三")
    assert ew("keys", "add", "alice", "--json").code == 2
    rotated = ew("keys", "rotate", "alice", "--json").document
    store = KeyStore(home().keys)
    assert store.verify(made["key"]) is None
    found = store.verify(rotated["key"])
    assert found is not None and found.requests_per_minute == 60
    assert ew("keys", "revoke", "alice", "--json").code == 0
    assert store.verify(rotated["key"]) is None
    assert ew("keys", "list", "--json").document["keys"] == []


async def test_load_and_unload(stack: Stack) -> None:
    status, _, data = await stack.post(f"/api/v1/models/{MODEL}/unload", b"")
    assert (status, json.loads(data)["state"]) == (200, "UNLOADED")
    assert (await stack.get("/health/ready"))[0] == 503
    status, _, data = await stack.post(f"/api/v1/models/{MODEL}/load", b"")
    assert (status, json.loads(data)["state"]) == (200, "READY")
    assert stack.triton.controls == [("unload", "m-tensorrt_llm"), ("load", "m-tensorrt_llm")]
