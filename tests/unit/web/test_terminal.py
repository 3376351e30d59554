"""The terminal of the pages over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from tests.fakes.processes import Answer
from tests.service import listening
from tests.unit.web.conftest import Pages
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from builderd.api.server import terminal_relay
from builderd.web.app import Site
from builderd.web.policy import PLAIN_NAME

PATIENCE = 60


@pytest.fixture
async def terminal(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClientConnection]:
    monkeypatch.setattr(terminal_relay, "GUARD_SECONDS", 0.05)
    pages.service.engine.answer("/bin/bash --login", Answer(echoes=True))
    await pages.create("my-api")
    cookie = f"{PLAIN_NAME}={pages.browser.cookies[PLAIN_NAME]}"
    async with listening(Site(pages.service.app, pages.web)) as url:  # type: ignore[arg-type]
        place = f"{url.replace('http', 'ws')}/builders/my-api/terminal/session"
        async with connect(
            place, origin=Origin(url), additional_headers={"Cookie": cookie}, proxy=None, open_timeout=PATIENCE
        ) as socket:
            yield socket


async def echoed(terminal: ClientConnection) -> None:
    """Wait until what is typed is printed."""
    async with asyncio.timeout(PATIENCE):
        await terminal.send(b"echo")
        assert await terminal.recv() == b"echo"


async def code(terminal: ClientConnection) -> int | None:
    """Return the code that it is closed with."""
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionClosed):
            async for _ in terminal:
                pass
    return terminal.close_code


async def test_a_session_that_ends_takes_its_terminal_along(pages: Pages, terminal: ClientConnection) -> None:
    await echoed(terminal)
    await pages.browser.post("/sign-out")
    assert await code(terminal) == terminal_relay.POLICY


@pytest.mark.parametrize("text", ["", "hello", "[]", "7", "[" * 20_000, json.dumps({"columns": 0, "rows": 1})])
async def test_a_message_that_makes_no_sense_is_ignored(terminal: ClientConnection, text: str) -> None:
    await terminal.send(text)
    await echoed(terminal)
