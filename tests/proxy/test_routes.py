"""The routes file: servers and models that come and go while the proxy runs, and whose models are whose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from proxy.router import Router
from proxy.routes import Route, RoutesFile
from tests.proxy.fake_triton import FakeTriton
from tests.proxy.stack import MODEL, Stack, text_of

BOTH = {"a-tensorrt_llm": "READY", "b-tensorrt_llm": ""}  # one repository: each server lists all of it


def write(path: Path, *routes: tuple[str, list[str]]) -> None:
    rows = [{"url": url, "metrics": url, "models": models} for url, models in routes]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"tritonservers": rows}))
    os.replace(fresh, path)


def test_a_file_is_told_once_for_each_change(tmp_path: Path) -> None:
    file = RoutesFile(tmp_path / "routes.json")
    assert file.changed() is None
    write(tmp_path / "routes.json", ("http://one", ["a"]))
    assert file.changed() == (Route("http://one", "http://one", ("a",)),)
    assert file.changed() is None
    write(tmp_path / "routes.json", ("http://one", ["a"]), ("http://two", ["b", "c"]))
    changed = file.changed()
    assert changed is not None and changed[1].models == ("b", "c")


@pytest.mark.parametrize("text", ["", "{}", '{"tritonservers": [{"url": "x"}]}', '{"tritonservers": 3}'])
def test_a_file_of_another_form_is_an_error_once(tmp_path: Path, text: str) -> None:
    file = RoutesFile(tmp_path / "routes.json")
    (tmp_path / "routes.json").write_text(text)
    with pytest.raises(ConfigError, match=r"routes\.json"):
        file.changed()
    assert file.changed() is None


async def test_a_server_is_asked_for_its_own_models_only() -> None:
    first, second = FakeTriton(dict(BOTH)), FakeTriton({"a-tensorrt_llm": "", "b-tensorrt_llm": "READY"})
    await first.start()
    await second.start()
    router = Router((first.url,))
    await router.use((Route(first.url, "", ("a",)), Route(second.url, "", ("b",))))
    await router.refresh()
    assert router.client_for("a").pool.url == router.home_of("a").pool.url == first.url
    assert router.client_for("b").pool.url == router.home_of("b").pool.url == second.url
    await router.set_loaded("b", False)
    assert (first.controls, second.controls) == ([], [("unload", "b-tensorrt_llm")])
    await second.stop()
    await router.refresh()
    assert (router.state("a"), router.state("b")) == ("READY", "UNREACHABLE")
    await router.close()
    await first.stop()


async def test_models_come_and_go_while_others_answer(
    make_stack: Callable[..., Any], package: Path, tmp_path: Path
) -> None:
    routes = tmp_path / "routes.json"
    other = FakeTriton({"other-tensorrt_llm": "READY"})
    await other.start()
    async with make_stack(routes=str(routes)) as stack:
        stack.script("hello")
        assert text_of(await stack.events()) == "hello"
        config = tmp_path / "config.json"
        document = json.loads(config.read_text())
        document["models"]["other"] = document["models"][MODEL]
        config.write_text(json.dumps(document))
        tokenizer = stack.service.registry.get(MODEL).tokenizer
        write(routes, (stack.triton.url, [MODEL]), (other.url, ["other"]))
        status, ready = await stack.get("/health/ready")
        assert (status, ready["models"]) == (200, {MODEL: "READY", "other": "READY"})
        other.models["other-tensorrt_llm"] = "UNAVAILABLE"
        assert (await stack.get("/health/ready"))[0] == 503
        assert (await stack.get(f"/health/ready?model={MODEL}"))[0] == 200
        assert (await stack.get(f"/health/ready?model={MODEL}&model=other"))[0] == 503
        assert (await stack.get("/health/ready?model=nobody"))[0] == 404
        other.models["other-tensorrt_llm"] = "READY"
        assert (await stack.get("/health/ready"))[0] == 200
        assert stack.service.registry.get(MODEL).tokenizer is tokenizer, "what stays is not read again"
        other.script.tokens = tokenizer.encode("world").ids
        assert text_of(await stack.events(modelId="other")) == "world"
        write(routes, (stack.triton.url, [MODEL]))
        assert (await stack.get("/health/ready"))[1]["models"] == {MODEL: "READY"}
        status, _, body = await stack.post("/api/v1/inference", {"modelId": "other", "prompt": "x"})
        assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
        assert text_of(await stack.events()) == "hello"
    await other.stop()


async def test_a_bad_file_leaves_all_as_it_was(make_stack: Callable[..., Any], tmp_path: Path) -> None:
    routes = tmp_path / "routes.json"
    async with make_stack(routes=str(routes)) as stack:
        stack.script("hello")
        routes.write_text("{")
        assert (await stack.get("/health/ready"))[0] == 200
        assert text_of(await stack.events()) == "hello"


async def test_a_request_waits_for_a_load_no_longer_than_it_may(make_stack: Callable[..., Any]) -> None:
    stack: Stack
    async with make_stack(model={"idle_unload_seconds": 60}, load_wait=0.2) as stack:
        stack.script("hello")
        stack.triton.models[f"{MODEL}-tensorrt_llm"] = "UNLOADING"
        await stack.service.router.refresh()
        status, _, body = await stack.post("/api/v1/inference", {"modelId": MODEL, "prompt": "x"})
        assert (status, json.loads(body)["error"]["code"]) == (503, "model_loading")
        stack.triton.models[f"{MODEL}-tensorrt_llm"] = ""
        assert text_of(await stack.events()) == "hello"
