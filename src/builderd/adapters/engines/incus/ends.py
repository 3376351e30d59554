"""Ends of instances: how an app ended, found out once and written on its instance."""

from __future__ import annotations

import asyncio
import time

from builderd.adapters.engines.incus import guest
from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.errors import IncusError, IncusNotFound, PoolFull
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.reports import SHUTDOWN_CODES, Exit, make_end, was_stopped
from builderd.adapters.engines.incus.volumes import own_of

#: Seconds within which Incus notes that a stopped instance was stopped and not cut off with its machine.
_NOTE_SECONDS = 3.0
#: Attempts to read a file of an instance whose root is being unmounted.
_BUSY_TRIES, _BUSY_SECONDS = 50, 0.1


class Ends:
    def __init__(self, instances: Instances) -> None:
        self._client = instances.client
        self._instances = instances
        #: Ends that are being found out, by instance.
        self._writing: dict[str, asyncio.Future[str]] = {}

    async def write(self, found: Json) -> Json:
        """Find out how an instance ended, and write it on it, so that every later report says the same.

        Return the instance with it. Calls at the same time share one: a stop, and the event that it causes.
        """
        name = found["name"]
        if (writing := self._writing.get(name)) is None:
            writing = self._writing[name] = asyncio.ensure_future(self._write(found))
            writing.add_done_callback(lambda done: self._forget(name, done))
        end = {f"{OWN}end": await asyncio.shield(writing)}
        return {**found, "config": found["config"] | end}

    def _forget(self, name: str, done: asyncio.Future[str]) -> None:
        self._writing.pop(name, None)
        if not done.cancelled():
            done.exception()  # all who wait for it may have been cancelled

    async def _write(self, found: Json) -> str:
        own, name = own_of(found), found["name"]
        recorded = await self.read(name, guest.EXIT_RECORD)
        exit_ = Exit.parse(recorded) if recorded else None
        restarted = False
        if not was_stopped(own, exit_):
            restarted = exit_ is None and await self.read(name, guest.RESTARTED) is not None
            if not restarted and (exit_ is None or exit_.code in SHUTDOWN_CODES):
                restarted = await self._was_cut_off(name)
        end = make_end(own, exit_, host_restarted=restarted, now=time.time())
        try:
            await self._instances.mark(name, {"end": end})
        except PoolFull:
            # An earlier service may have written its own meanwhile.
            written: str | None = own_of(await self._client.get(f"/instances/{name}")).get("end")
            if written is None:
                raise
            return written
        return end

    async def read(self, name: str, path: str) -> str | None:
        """Return the text of a file of an instance, None when there is none."""
        for attempt in range(_BUSY_TRIES):
            try:
                content = await self._client.file(name, path)
            except IncusNotFound:
                return None
            except IncusError:
                # Its root is being unmounted after its end.
                if attempt == _BUSY_TRIES - 1:
                    raise
                await asyncio.sleep(_BUSY_SECONDS)
            else:
                return content.decode() if isinstance(content, bytes) else None
        return None

    async def _was_cut_off(self, name: str) -> bool:
        """Return True if Incus takes the instance for running: its machine restarted, or was shut down, under it."""
        deadline = time.monotonic() + _NOTE_SECONDS
        while True:
            found = await self._instances.find(name)
            if found is None or found["config"].get("volatile.last_state.power") != "RUNNING":
                return False
            if time.monotonic() > deadline:
                return True
            await asyncio.sleep(0.1)
