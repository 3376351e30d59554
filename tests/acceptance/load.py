"""Visitors at a steady rate: every answer is kept, and how long it took."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from tests.acceptance.live_service import PATIENCE, LiveService


@dataclass
class Load:
    """``seen`` counts the bodies of the answers, ``failed`` says what was no 200, ``seconds`` is of each request."""

    rate: float
    seen: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def longest(self) -> float:
        return max(self.seconds, default=0.0)


@dataclass
class Calm:
    """``longest``: for how many seconds an app that nothing is done to did not answer."""

    longest: float = 0.0


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run the work in a thread until the block ends, which an event signals."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(PATIENCE)


@contextmanager
def calm(service: LiveService, data: Mapping[str, Any]) -> Iterator[Calm]:
    """Visits one after another until the block ends, almost without a pause: none misses a machine that stalls."""
    told = Calm()

    def visit(over: threading.Event) -> None:
        answered = time.monotonic()
        while not over.is_set():
            service.visit(data)
            before, answered = answered, time.monotonic()
            told.longest = max(told.longest, answered - before)
            time.sleep(0.01)

    with beside(visit):
        yield told


@contextmanager
def load(service: LiveService, data: Mapping[str, Any], rate: float, method: str = "GET") -> Iterator[Load]:
    """So many requests a second to the preview until the block ends, each sent in time whatever the others do."""
    told = Load(rate)
    url = f"http://127.0.0.1:{service.preview_port}/"
    headers = {"Host": data["preview_url"].split("/")[2]}
    with beside(lambda over: asyncio.run(_visit(told, over, method, url, headers))):
        yield told


async def _visit(told: Load, over: threading.Event, method: str, url: str, headers: Mapping[str, str]) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(timeout=60, limits=limits, headers=headers, trust_env=False) as client:
        visits: set[asyncio.Task[None]] = set()
        begun, sent = time.monotonic(), 0
        while not over.is_set():
            visit = asyncio.create_task(_request(told, client, method, url))
            visits.add(visit)
            visit.add_done_callback(visits.discard)
            sent += 1
            await asyncio.sleep(max(0.0, begun + sent / told.rate - time.monotonic()))
        await asyncio.gather(*visits)


async def _request(told: Load, client: httpx.AsyncClient, method: str, url: str) -> None:
    begun = time.monotonic()
    try:
        response = await client.request(method, url)
    except httpx.HTTPError as error:
        told.failed.append(f"{type(error).__name__} after {time.monotonic() - begun:.2f} s: {error}")
        return
    seconds = time.monotonic() - begun
    told.seconds.append(seconds)
    if response.status_code == 200:
        told.seen[response.text] += 1
    else:
        headers = {name: value for name, value in response.headers.items() if name != "date"}
        told.failed.append(f"{response.status_code} after {seconds:.3f} s: {headers} {response.text[:200]!r}")
