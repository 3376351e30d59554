"""Relay between a process and a WebSocket (RFC 6455): what it prints, what is typed, and the end of either."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketState

from builderd.api.server.answers import failure
from builderd.domain.errors import BuilderdError, StoreUnavailable
from builderd.domain.processes import Window
from builderd.ports.engine import Process

#: Seconds between checks that the client may still use the terminal.
GUARD_SECONDS = 15.0
#: Close codes of RFC 6455, 7.4.1.
NORMAL, POLICY = 1000, 1008


async def relay(
    websocket: WebSocket,
    process: Process,
    window_of: Callable[[str], Window | None],
    check: Callable[[], Awaitable[object]],
) -> None:
    """Relay until the process ends, the client disconnects, or ``check`` raises anything but ``StoreUnavailable``.

    ``window_of`` returns the window size in a text message, None for one to ignore.
    """
    tasks = [
        asyncio.ensure_future(_show(websocket, process)),
        asyncio.ensure_future(_take(websocket, process, window_of)),
        asyncio.ensure_future(_guard(check)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _show(websocket: WebSocket, process: Process) -> None:
    while piece := await process.read():
        await websocket.send_bytes(piece)
    await websocket.send_json({"type": "exit", "exit_code": await process.wait()})
    await websocket.close(NORMAL)


async def _take(websocket: WebSocket, process: Process, window_of: Callable[[str], Window | None]) -> None:
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if (typed := message.get("bytes")) is not None:
            await process.write(typed)
        elif (window := window_of(message.get("text") or "")) is not None:
            process.resize(window)


async def _guard(check: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(GUARD_SECONDS)
        # An unavailable database does not mean that the client lost its access: the next check asks again.
        with suppress(StoreUnavailable):
            await check()


async def refuse(websocket: WebSocket, error: BuilderdError) -> None:
    """Answer in the envelope before the connection is accepted; close it afterwards."""
    if websocket.application_state is WebSocketState.CONNECTING:
        await websocket.send_denial_response(failure(error).response())
    elif websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(POLICY, error.code)
