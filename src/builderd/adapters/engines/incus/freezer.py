"""Freezing and thawing of instances: apps that sleep, and apps whose disk is copied meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from weakref import WeakValueDictionary

from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.errors import IncusError
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.volumes import own_of
from builderd.domain.errors import BuilderdError

log = logging.getLogger(__name__)

_STATE_SECONDS = 30
#: Seconds for attempts to thaw an instance that Incus still freezes, or while it does not answer, and between two.
_THAW_SECONDS, _PAUSE_SECONDS = 10.0, 0.1
#: Status of an instance that needs the action no more.
_DONE = {"freeze": ("Frozen", "Stopped"), "unfreeze": ("Running", "Ready", "Thawed", "Stopping", "Stopped")}


class Freezer:
    def __init__(self, instances: Instances) -> None:
        self._client = instances.client
        self._instances = instances
        #: One lock an instance: a copy of its disk, or one freeze or thaw.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, name: str) -> asyncio.Lock:
        """Return the lock that an instance is frozen or thawed under."""
        return self._locks.setdefault(name, asyncio.Lock())

    async def freeze(self, name: str) -> None:
        await self._set_state(name, "freeze")

    async def unfreeze(self, name: str) -> None:
        await self._set_state(name, "unfreeze")

    async def _set_state(self, name: str, action: str) -> None:
        try:
            await self._client.call("PUT", f"/instances/{name}/state", {"action": action, "timeout": _STATE_SECONDS})
        except IncusError:
            # It may have ended meanwhile, which Incus tells by words alone, or have this state.
            found = await self._instances.find(name)
            if found and found["status"] not in _DONE[action]:
                raise

    @asynccontextmanager
    async def frozen_meanwhile(self, name: str) -> AsyncIterator[None]:
        """Keep an instance frozen, and its visitors waiting, while the context lasts.

        Raises ``IncusError`` where the freeze fails.
        """
        async with self.lock(name), AsyncExitStack() as ending:
            found = await self._instances.find(name)
            if found and found["status"] not in _DONE["freeze"]:
                if ip := own_of(found).get("ip"):
                    await ending.enter_async_context(self._instances.pause_requests(ip))
                # Also a freeze that is cancelled before Incus has answered is undone.
                ending.push_async_callback(lambda: asyncio.shield(self._thaw(name)))
                await self.freeze(name)
            yield

    async def _thaw(self, name: str) -> None:
        """Thaw an instance; Incus may still be at work on its freeze, and refuses until that is done.

        Where it does not answer, as without a quorum, the instance is thawed once it does (``thaw_left``).
        """
        deadline = time.monotonic() + _THAW_SECONDS
        while not await self._is_thawed(name):
            if time.monotonic() > deadline:
                log.error("app stays frozen after a copy of its disk, thawed once Incus answers instance=%s", name)
                self._instances.on_left("")
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _is_thawed(self, name: str) -> bool:
        """Thaw an instance; return False where Incus refuses, or does not answer."""
        try:
            with suppress(IncusError):
                await self.unfreeze(name)
            found = await self._instances.find(name)
        except BuilderdError:
            return False
        return found is None or found["status"] not in ("Frozen", "Freezing")

    async def thaw_left(self, listed: Json) -> None:
        """Thaw an instance that an earlier service, or a copy that broke off, left frozen."""
        if not self._is_left(listed):
            return
        # Of an older list: it may sleep by now.
        found = await self._instances.find(listed["name"])
        if found is None or not self._is_left(found):
            return
        try:
            await self.unfreeze(found["name"])
        except IncusError as error:
            log.warning("app stays frozen after a copy of its disk instance=%s error=%s", found["name"], error)

    def _is_left(self, found: Json) -> bool:
        own = own_of(found)
        sleeps = float(own.get("frozen", 0)) > float(own.get("thawed", 0))
        return found["status"] == "Frozen" and not sleeps and not self.lock(found["name"]).locked()
