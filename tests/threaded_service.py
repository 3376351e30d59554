"""A service on fakes that listens in a thread of its own, for clients that are synchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.service import Service, listening, running_service

from builderd.tokens.model import Scope


@dataclass(frozen=True)
class Running:
    service: Service
    url: str
    #: The scope `admin`, of the same tenant as the service's `write` and `read`.
    admin: str
    #: Loop of the service's thread.
    loop: asyncio.AbstractEventLoop


@contextmanager
def threaded_service(**limits: Any) -> Iterator[Running]:
    """Run the service until the block ends."""
    started: list[Running] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running_service(**limits) as service, listening(service.app) as url:
            admin = await service.token("acme", Scope.ADMIN)
            started.append(Running(service, url, admin, asyncio.get_running_loop()))
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    try:
        yield started[0]
    finally:
        over.set()
        thread.join()
