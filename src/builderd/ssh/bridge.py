"""Copy between an SSH channel and a process in a sandbox: input, output, window size, signals and exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncssh

from builderd.domain.processes import MAX_WINDOW, Window
from builderd.ports.processes import Process

CHUNK_BYTES = 64 * 1024
#: Signals that a client may send to end what it started.
ENDING = frozenset({"HUP", "INT", "TERM", "KILL", "QUIT"})

Read = Callable[[], Awaitable[bytes]]


async def join(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> int | None:
    """Copy both directions until the process ends. Return its exit code, or None when the client left first."""
    outputs: list[Coroutine[Any, Any, None]] = [_copy(process.read, channel.stdout)]
    if channel.term_type is None:
        outputs.append(_copy(process.read_errors, channel.stderr))
    feeding = asyncio.ensure_future(_feed(channel, process))
    ending = asyncio.ensure_future(_wait_for_exit(outputs, process))
    closed = asyncio.ensure_future(channel.channel.wait_closed())
    try:
        await asyncio.wait({ending, closed}, return_when=asyncio.FIRST_COMPLETED)
        return await ending if ending.done() and not ending.exception() else None
    finally:
        for task in (feeding, ending, closed):
            task.cancel()
        await asyncio.gather(feeding, ending, closed, return_exceptions=True)


async def _wait_for_exit(outputs: list[Coroutine[Any, Any, None]], process: Process) -> int:
    """Return the exit code once all output is copied."""
    await asyncio.gather(*outputs)
    return await process.wait()


async def _copy(read: Read, writer: asyncssh.SSHWriter[bytes]) -> None:
    while piece := await read():
        writer.write(piece)
        await writer.drain()


async def _feed(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> None:
    """Copy the client's input, window sizes and signals to the process."""
    while True:
        try:
            piece = await channel.stdin.read(CHUNK_BYTES)
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
    """Copy both directions of a forwarded connection until the relay process or the client ends it."""
    copying = asyncio.ensure_future(_copy(process.read, writer))
    feeding = asyncio.ensure_future(_copy_input(reader, process))
    closed = asyncio.ensure_future(writer.channel.wait_closed())
    try:
        await asyncio.wait({copying, closed}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (copying, feeding, closed):
            task.cancel()
        await asyncio.gather(copying, feeding, closed, return_exceptions=True)
        writer.close()


async def _copy_input(reader: asyncssh.SSHReader[bytes], process: Process) -> None:
    while piece := await reader.read(CHUNK_BYTES):
        await process.write(piece)
    process.close_input()
