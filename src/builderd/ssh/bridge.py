"""Between an SSH channel and a process in a sandbox: both directions, the window, the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncssh

from builderd.domain.processes import MAX_WINDOW, Window
from builderd.ports.processes import Process

PIECE = 64 * 1024
#: Signals that a client may send to end what it started.
ENDING = frozenset({"HUP", "INT", "TERM", "KILL", "QUIT"})

Read = Callable[[], Awaitable[bytes]]


async def join(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> int | None:
    """Hand everything on until the process has ended; its exit code, or None when the client left before."""
    outputs: list[Coroutine[Any, Any, None]] = [_copy(process.read, channel.stdout)]
    if channel.term_type is None:
        outputs.append(_copy(process.read_errors, channel.stderr))
    feeding = asyncio.ensure_future(_feed(channel, process))
    ending = asyncio.ensure_future(_end(outputs, process))
    gone = asyncio.ensure_future(channel.channel.wait_closed())
    try:
        await asyncio.wait({ending, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await ending if ending.done() and not ending.exception() else None
    finally:
        for task in (feeding, ending, gone):
            task.cancel()
        await asyncio.gather(feeding, ending, gone, return_exceptions=True)


async def _end(outputs: list[Coroutine[Any, Any, None]], process: Process) -> int:
    await asyncio.gather(*outputs)
    return await process.wait()


async def _copy(read: Read, writer: asyncssh.SSHWriter[bytes]) -> None:
    while piece := await read():
        writer.write(piece)
        await writer.drain()


async def _feed(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> None:
    while True:
        try:
            piece = await channel.stdin.read(PIECE)
        except asyncssh.TerminalSizeChanged as change:
            process.resize(Window(min(change.width, MAX_WINDOW), min(change.height, MAX_WINDOW)))
            continue
        except asyncssh.BreakReceived:
            continue
        except asyncssh.SignalReceived as received:
            if received.signal in ENDING:
                await process.kill()
            continue
        if not piece:
            process.close_input()
            return
        await process.write(piece)


async def forward(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], process: Process) -> None:
    """The same for a forwarded connection."""
    copying = asyncio.ensure_future(_copy(process.read, writer))
    feeding = asyncio.ensure_future(_pour(reader, process))
    gone = asyncio.ensure_future(writer.channel.wait_closed())
    try:
        await asyncio.wait({copying, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (copying, feeding, gone):
            task.cancel()
        await asyncio.gather(copying, feeding, gone, return_exceptions=True)
        writer.close()


async def _pour(reader: asyncssh.SSHReader[bytes], process: Process) -> None:
    while piece := await reader.read(PIECE):
        await process.write(piece)
    process.close_input()
