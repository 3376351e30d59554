"""Freezing and thawing of instances: apps that sleep, and apps whose disk is copied meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.errors import IncusError
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.volumes import own_of

log = logging.getLogger(__name__)

_STATE_SECONDS = 30
#: Attempts to thaw an instance that Incus still freezes.
_BUSY_TRIES, _BUSY_SECONDS = 50, 0.1
#: Status of an instance that needs the action no more.
_DONE = {"freeze": ("Frozen", "Stopped"), "unfreeze": ("Running", "Ready", "Thawed", "Stopping", "Stopped")}


class Freezer:
    def __init__(self, instances: Instances) -> None:
        self._client = instances.client
        self._instances = instances
        #: Names of instances that are frozen now for a copy of their disk.
        self._copying: set[str] = set()

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
        """Freeze a running instance while the context lasts. Raises ``IncusError`` where that fails."""
        self._copying.add(name)
        try:
            # Also a freeze that is cancelled before Incus has answered is undone.
            await self.freeze(name)
            yield
        finally:
            try:
                await asyncio.shield(self._thaw(name))
            finally:
                self._copying.discard(name)

    async def _thaw(self, name: str) -> None:
        """Thaw an instance; Incus may still be at work on its freeze, and refuses until that is done."""
        for _ in range(_BUSY_TRIES):
            with suppress(IncusError):
                await self.unfreeze(name)
            found = await self._instances.find(name)
            if found is None or found["status"] not in ("Frozen", "Freezing"):
                return
            await asyncio.sleep(_BUSY_SECONDS)
        log.error("app stays frozen after a copy of its disk instance=%s", name)

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
        return found["status"] == "Frozen" and not sleeps and found["name"] not in self._copying
