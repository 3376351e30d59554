"""Reading from a pipe without blocking the event loop."""

from __future__ import annotations

import asyncio
import os

_CHUNK = 1 << 16


async def read_line(descriptor: int, seconds: float) -> bytes:
    """Return the first line, or the part of it written when the last writer ended; raises ``TimeoutError``.

    The caller closes the descriptor; it is not used here after the return.
    """
    os.set_blocking(descriptor, False)
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    text = b""
    loop.add_reader(descriptor, readable.set)
    try:
        async with asyncio.timeout(seconds):
            while b"\n" not in text:
                try:
                    chunk = os.read(descriptor, _CHUNK)
                except BlockingIOError:
                    readable.clear()
                    await readable.wait()
                    continue
                if not chunk:
                    break
                text += chunk
    finally:
        loop.remove_reader(descriptor)
    return text.partition(b"\n")[0]
