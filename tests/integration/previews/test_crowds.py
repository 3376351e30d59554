"""Crowds: one that waited for an app is let in in waves, and one that comes while it is frozen waits in the kernel."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.integration.previews.waking_service import Service, change, fetch, serving, until, visit
from tests.previews.proxy import App, new_host
from tests.previews.visitor import Answer, Visitor, ask

from builderd.previews.model import Address, Route, RouteState

pytestmark = pytest.mark.haproxy

#: So many come at once, and so many of them are let in at once, some seconds apart.
CROWD, WAVE, PAUSE_SECONDS = 8, 4, 3


@pytest.fixture
async def slow_waves(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    change(monkeypatch, "WAVE_PAUSE = 20", f"WAVE_PAUSE = {PAUSE_SECONDS * 1000}")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CROWD + 1))
    async with serving() as made:
        yield made


async def asked(app: App, number: int) -> None:
    """Wait until so many requests have come to the app."""

    def count() -> Answer:
        with Visitor(app.port).dial() as connection:
            return ask(connection, "app", "/head?/")

    async def are() -> bool:
        return bool((await asyncio.to_thread(count)).json["asked"] == number)

    await until(are)


async def crowd(service: Service, host: str) -> list[asyncio.Task[Answer]]:
    """Return the visits of a crowd, once all of them are paused."""
    many = [asyncio.create_task(visit(service.visitor.get, host, "/")) for _ in range(CROWD)]
    await service.knocked(host)
    await service.paused(CROWD)
    return many


async def test_a_crowd_that_is_being_let_in_goes_where_the_route_has_gone_meanwhile(
    slow_waves: Service, make_app: Callable[[str], App]
) -> None:
    first, second = make_app("first"), make_app("second")
    host = await slow_waves.asleep()
    many = await crowd(slow_waves, host)
    await slow_waves.wake(host, first)
    await asked(first, WAVE)
    await slow_waves.wake(host, second)
    names = [answer.json["name"] for answer in await asyncio.gather(*many)]
    assert Counter(names) == {"first": WAVE, "second": CROWD - WAVE}


async def test_a_crowd_that_is_being_let_in_waits_on_where_it_is_paused_again(
    slow_waves: Service, make_app: Callable[[str], App]
) -> None:
    first, second = make_app("first"), make_app("second")
    host = await slow_waves.asleep(state=RouteState.PAUSED)
    many = await crowd(slow_waves, host)
    await slow_waves.wake(host, first)
    await asked(first, WAVE)
    await slow_waves.asleep(state=RouteState.PAUSED, host=host)
    slow_waves.knocks.clear()
    await slow_waves.knocked(host)
    assert sum(task.done() for task in many) == WAVE
    await slow_waves.wake(host, second)
    names = [answer.json["name"] for answer in await asyncio.gather(*many)]
    assert Counter(names) == {"first": WAVE, "second": CROWD - WAVE}, "nobody is sent away"


async def test_many_wait_for_one_word_and_are_let_in_over_time(app: App) -> None:
    async with serving() as service:
        host = await service.asleep()
        many = [asyncio.create_task(fetch(service.options.port, host)) for _ in range(200)]
        await service.paused(200)
        begun = time.monotonic()
        await service.wake(host, app)
        assert await asyncio.gather(*many) == [200] * 200
        assert time.monotonic() - begun > 0.9
        assert service.knocks[0] == host


async def test_no_visit_fails_while_its_app_is_frozen(tmp_path: Path) -> None:
    """The app has a listen backlog of five. A dropped connection is tried again after 1, 3 and 7 s."""
    (tmp_path / "head").touch()
    argv = (sys.executable, "-um", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as small:
        assert small.stdout is not None
        port = re.search(r"port (\d+)", small.stdout.readline())
        assert port is not None
        try:
            async with serving() as service:
                route = Route(new_host(), RouteState.OPEN, Address("127.0.0.1", int(port[1])))
                await service.previews.put(route)
                small.send_signal(signal.SIGSTOP)
                many = []
                for _ in range(60):
                    many.append(asyncio.create_task(fetch(service.options.port, route.host)))
                    await asyncio.sleep(0.05)
                assert not any(one.done() for one in many)
                small.send_signal(signal.SIGCONT)
                assert await asyncio.gather(*many) == [200] * 60
        finally:
            small.kill()
