"""A service whose visitors wait for apps that sleep or are being replaced."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.previews.proxy import TOKEN, App, free_port, new_host, route_to
from tests.previews.visitor import Answer, Visitor

from builderd.core.ids import secret_hash
from builderd.previews.haproxy import pause, runtime_api
from builderd.previews.haproxy.options import ProxyOptions
from builderd.previews.haproxy.previews import HaproxyPreviews
from builderd.previews.model import Route, RouteState

#: Against hanging only.
PATIENCE = 60


class Service:
    """The service's side, in a loop that goes on while visitors wait in threads."""

    def __init__(self, *, threads: int = 2) -> None:
        # Short, because a Unix socket's path is.
        self.place = Path(tempfile.mkdtemp(prefix="previews-"))
        self.options = ProxyOptions(port=free_port(), threads=threads)
        self.previews = self.another()
        self.knocks: list[str] = []
        self.visitor = Visitor(self.options.port)
        self._listening: asyncio.Task[None] | None = None

    def another(self) -> HaproxyPreviews:
        return HaproxyPreviews(self.place / "p", self.options)

    async def start(self) -> None:
        await self.previews.start()
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for host in self.previews.visitors():
            self.knocks.append(host)

    async def die(self) -> None:
        """Stop answering on its socket, as a killed service does."""
        assert self._listening
        self._listening.cancel()
        await self.previews._paused.close()
        (self.place / "p" / "empty" / "wake.sock").unlink(missing_ok=True)

    async def come_back(self) -> None:
        self.previews = self.another()
        await self.start()

    async def asleep(
        self, *, private: bool = False, state: RouteState = RouteState.ASLEEP, host: str | None = None
    ) -> str:
        owner: dict[str, Any] = {"token_hash" if private else "owner_hash": secret_hash(TOKEN)}
        route = Route(host or new_host(), state, None, **owner)
        await self.previews.put(route)
        return route.host

    async def wake(self, host: str, app: App, *, private: bool = False) -> None:
        await self.previews.put(route_to(app, private=private, host=host))

    async def knocked(self, host: str) -> None:
        async def has() -> bool:
            return host in self.knocks

        await until(has)

    async def ask(self, command: str) -> str:
        return await runtime_api.ask(self.place / "p" / "admin.sock", command)

    async def paused(self, number: int) -> None:
        """Wait until so many requests are paused, by the proxy's own list, which leaves out mere connections."""

        async def are() -> bool:
            return (await self.ask("show sess")).count(" be=preview_") == number

        await until(are)

    async def close(self) -> None:
        if self._listening:
            self._listening.cancel()
        await self.previews.down()
        shutil.rmtree(self.place)


async def until(is_true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await is_true():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(*, threads: int = 2) -> AsyncIterator[Service]:
    made = Service(threads=threads)
    try:
        await made.start()
        yield made
    finally:
        await made.close()


def change(monkeypatch: pytest.MonkeyPatch, line: str, other: str) -> None:
    """Change a line of the pause script."""
    script = pause.script()
    assert line in script
    monkeypatch.setattr(pause, "script", lambda: script.replace(line, other))


async def visit(look: Callable[..., Answer], *args: Any, **options: str) -> Answer:
    return await asyncio.to_thread(look, *args, **options)


async def fetch(port: int, host: str, accept: str = "*/*") -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /head HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ")[1])
