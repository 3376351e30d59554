"""Freezing and thawing of instances: apps that sleep, and apps whose disk is copied meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.errors import IncusError
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.volumes import own_of
from builderd.domain.errors import BuilderdError

log = logging.getLogger(__name__)

_STATE_SECONDS = 30
#: Attempts to thaw an instance that Incus still freezes, or while it does not answer; the last begins in this time.
_BUSY_TRIES, _BUSY_SECONDS, _THAW_SECONDS = 50, 0.1, 10.0
#: Status of an instance that needs the action no more.
_DONE = {"freeze": ("Frozen", "Stopped"), "unfreeze": ("Running", "Ready", "Thawed", "Stopping", "Stopped")}


@dataclass(slots=True, weakref_slot=True)
class _Turn:
    """An instance's turn, held by all copies of its disk together, or by one freeze or thaw of another kind.

    ``copies`` counts the former, which come and go one at a time (``changing``); ``froze``: they have frozen it, and
    ``pause`` keeps its visitors waiting.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    copies: int = 0
    froze: bool = False
    pause: AsyncExitStack = field(default_factory=AsyncExitStack)


class Freezer:
    def __init__(self, instances: Instances) -> None:
        self._client = instances.client
        self._instances = instances
        self._turns: WeakValueDictionary[str, _Turn] = WeakValueDictionary()

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
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Hold the instance for a freeze or thaw of another kind: waits until no copy is made."""
        turn = self._turn(name)
        async with turn.lock:
            yield

    def _turn(self, name: str) -> _Turn:
        return self._turns.setdefault(name, _Turn())

    @asynccontextmanager
    async def frozen_meanwhile(self, name: str) -> AsyncIterator[None]:
        """Keep an instance frozen, and its visitors waiting, while the context lasts; copies at once share one freeze.

        Raises ``IncusError`` where the freeze fails.
        """
        turn = self._turn(name)
        await self._join(turn, name)
        try:
            yield
        finally:
            await asyncio.shield(self._leave(turn, name))

    async def _join(self, turn: _Turn, name: str) -> None:
        async with turn.changing:
            if not turn.copies:
                await turn.lock.acquire()
                try:
                    turn.froze = await self._freeze_running(turn, name)
                except BaseException:
                    await asyncio.shield(self._end(turn))
                    raise
            turn.copies += 1

    async def _leave(self, turn: _Turn, name: str) -> None:
        async with turn.changing:
            turn.copies -= 1
            if turn.copies:
                return
            try:
                if turn.froze:
                    await self._thaw(name)
            finally:
                await self._end(turn)

    async def _end(self, turn: _Turn) -> None:
        try:
            await turn.pause.aclose()
        finally:
            turn.lock.release()

    async def _freeze_running(self, turn: _Turn, name: str) -> bool:
        """Freeze an instance that runs; return False for one that sleeps or has ended."""
        found = await self._instances.find(name)
        if found is None or found["status"] in _DONE["freeze"]:
            return False
        if ip := own_of(found).get("ip"):
            await turn.pause.enter_async_context(self._instances.pause_requests(ip))
        try:
            await self.freeze(name)
        except BaseException:
            # Also a freeze that is cancelled before Incus has answered is undone.
            await asyncio.shield(self._thaw(name))
            raise
        return True

    async def _thaw(self, name: str) -> None:
        """Thaw an instance; Incus may still be at work on its freeze, and refuses until that is done.

        Where it does not answer, as without a quorum, the instance is thawed once it does (``thaw_left``).
        """
        deadline = time.monotonic() + _THAW_SECONDS
        for _ in range(_BUSY_TRIES):
            if await self._is_thawed(name):
                return
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(_BUSY_SECONDS)
        log.error("app stays frozen after a copy of its disk, thawed once Incus answers instance=%s", name)
        self._instances.on_left("")

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
        return found["status"] == "Frozen" and not sleeps and not self._turn(found["name"]).copies
