"""A service that listens, and a client of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.service import Service, listening, running_service

from builderd.client import Client


@dataclass(frozen=True)
class Running:
    service: Service
    url: str


@pytest.fixture
def running() -> Iterator[Running]:
    """In a thread of its own: the client is synchronous."""
    started: list[Running] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with running_service() as service, listening(service.app) as url:
            started.append(Running(service, url))
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield started[0]
    over.set()
    thread.join()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.url, running.service.write) as opened:
        yield opened
