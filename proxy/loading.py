"""Models that come when they are asked for and go when nobody does: `idle_unload_seconds` of a model."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from common.config import ModelConfig
from common.errors import EwError, ServiceError
from proxy.router import Router

log = logging.getLogger("proxy.loading")

CHECK_SECONDS = 1.0
SETTLE_SECONDS = 0.1


class LastUse:
    """When each model was last in use, by any worker: file times in `folder`, or memory without one."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._times: dict[str, float] = {}

    def touch(self, model_id: str) -> None:
        self._times[model_id] = time.time()
        if self._folder is not None:
            path = self._folder / f"used-{model_id}"
            path.touch()
            os.utime(path)

    def age(self, model_id: str) -> float:
        """Seconds since the last use; a model never used counts from the first question."""
        last = self._times.setdefault(model_id, time.time())
        if self._folder is not None:
            path = self._folder / f"used-{model_id}"
            last = max(last, path.stat().st_mtime if path.exists() else 0.0)
        return time.time() - last


class OnDemand:
    """Loads a model for a request, unloads it when it has been idle for long enough."""

    def __init__(self, router: Router, models: dict[str, ModelConfig], folder: Path | None) -> None:
        self._router = router
        self.use_models(models)
        self._last_use = LastUse(folder)
        self._work: set[asyncio.Future[None]] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def use_models(self, models: dict[str, ModelConfig]) -> None:
        """The models that are served, each with its limit."""
        self._limits = {
            model_id: config.idle_unload_seconds
            for model_id, config in models.items()
            if config.idle_unload_seconds is not None
        }

    def covers(self, model_id: str) -> bool:
        return model_id in self._limits

    async def use(self, model_id: str, seconds: float) -> None:
        """Call for each request, once it is counted as running: the model is loaded when this returns.

        Raises:
            ServiceError: tritonserver cannot load it, or not within `seconds`; the loading goes on.
        """
        if model_id not in self._limits:
            return
        self._last_use.touch(model_id)
        if self._router.state(model_id) == "READY" and not self._locks[model_id].locked():
            return
        work = asyncio.ensure_future(self._ensure_loaded(model_id))
        self._work.add(work)
        work.add_done_callback(self._note_end)
        done, _ = await asyncio.wait({work}, timeout=seconds)
        if not done:
            raise ServiceError(
                f"{model_id} is still being loaded after {seconds:g} s.",
                hint="Try again in a moment; the loading goes on.",
                code="model_loading",
            )
        work.result()

    def _note_end(self, work: asyncio.Future[None]) -> None:
        self._work.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            log.warning("a model cannot be loaded: %s", error)

    async def _ensure_loaded(self, model_id: str) -> None:
        async with self._locks[model_id]:
            if self._router.state(model_id) == "READY":
                return
            if await self._settled(model_id) == "UNLOADED":
                log.info("loading %s, which a request asks for", model_id)
                await self._router.set_loaded(model_id, True)
                await self._router.refresh()

    async def unload_idle(self, running: Callable[[str], int]) -> None:
        """Look once a second; `running` says how many requests of a model this worker has."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for model_id, limit in tuple(self._limits.items()):
                if running(model_id):
                    self._last_use.touch(model_id)
                elif self._last_use.age(model_id) > limit:
                    await self._unload(model_id, running)

    async def _settled(self, model_id: str) -> str:
        """The model's state once it is neither loading nor unloading."""
        await self._router.refresh()
        while (state := self._router.state(model_id)) in ("LOADING", "UNLOADING"):
            await asyncio.sleep(SETTLE_SECONDS)
            await self._router.refresh()
        return state

    async def _unload(self, model_id: str, running: Callable[[str], int]) -> None:
        async with self._locks[model_id]:
            if running(model_id) or self._router.state(model_id) != "READY":
                return
            log.info("unloading %s, which nobody has used for a while", model_id)
            try:
                await self._router.set_loaded(model_id, False)
                await self._router.refresh()
            except (EwError, asyncio.TimeoutError) as error:
                log.warning("%s cannot be unloaded: %s", model_id, error)
