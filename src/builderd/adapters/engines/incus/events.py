"""Ends of instances, from Incus's stream of events, which has those of all members."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from websockets.exceptions import ConnectionClosed

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.reports import PREFIX, sandbox_of
from builderd.domain.errors import BuilderdError
from builderd.domain.ids import SandboxId

log = logging.getLogger(__name__)

_ENDED = ("instance-shutdown", "instance-stopped")
_RETRY_SECONDS = 1.0


class Events:
    """One connection for all subscribers. ``missed`` returns the sandboxes that ended while none was open."""

    def __init__(self, client: IncusClient, missed: Callable[[], Awaitable[list[SandboxId]]]) -> None:
        self._client = client
        self._missed = missed
        self._subscribers: set[asyncio.Queue[SandboxId]] = set()
        self._following: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()

    async def open(self) -> None:
        """Connect. Idempotent."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._connected.wait(), 5)

    async def close(self) -> None:
        if self._following:
            self._following.cancel()
            await asyncio.wait({self._following})
            self._following = None

    def subscribe(self) -> asyncio.Queue[SandboxId]:
        queue: asyncio.Queue[SandboxId] = asyncio.Queue()
        self._subscribers.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[SandboxId]) -> None:
        self._subscribers.discard(queue)

    async def _follow(self) -> None:
        while True:
            try:
                await self._follow_once()
            except (BuilderdError, ConnectionClosed) as error:
                log.warning("event stream of Incus lost retry_seconds=%.0f error=%s", _RETRY_SECONDS, error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _follow_once(self) -> None:
        async with self._client.websocket("/events", type="lifecycle") as connection:
            self._connected.set()
            for sandbox in await self._missed():
                self._publish(sandbox)
            async for message in connection:
                event = json.loads(message).get("metadata") or {}
                name = str(event.get("source", "")).partition("?")[0].rpartition("/")[2]
                if event.get("action") in _ENDED and name.startswith(PREFIX):
                    self._publish(sandbox_of(name))

    def _publish(self, sandbox: SandboxId) -> None:
        for queue in self._subscribers:
            queue.put_nowait(sandbox)
