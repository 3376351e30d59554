"""Reading from a pipe without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

_CHUNK = 1 << 16


async def read_chunks(descriptor: int) -> AsyncIterator[bytes]:
    """What comes, as it comes, until the last writer closes its end. The caller closes the descriptor."""
    os.set_blocking(descriptor, False)
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        while True:
            try:
                chunk = os.read(descriptor, _CHUNK)
            except BlockingIOError:
                readable.clear()
                await readable.wait()
                continue
            if not chunk:
                return
            yield chunk
    finally:
        loop.remove_reader(descriptor)


async def read_line(descriptor: int, seconds: float) -> bytes:
    """The first line, or what there was of it when the writer ended; raises ``TimeoutError``."""
    text = b""
    async with asyncio.timeout(seconds):
        async for chunk in read_chunks(descriptor):
            text += chunk
            if b"\n" in text:
                break
    return text.partition(b"\n")[0]
