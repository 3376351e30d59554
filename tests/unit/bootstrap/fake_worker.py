"""A port at which the service that works answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from builderd.adapters.previews.haproxy.forwarder import Target

DATA = {"engine": {"ready": True, "message": "ready"}}


@asynccontextmanager
async def service(answer: bytes, received: bytearray | None = None) -> AsyncIterator[Target]:
    """A port that answers each request with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = await reader.readuntil(b"\r\n\r\n\0\r\nQUIT\n")
        content += await reader.readuntil(b"\r\n\r\n")
        if received is not None:
            received.extend(content)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Target("127.0.0.1", server.sockets[0].getsockname()[1], api=True, streams=True)


def answered(data: object, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n".encode() + json.dumps({"data": data}).encode()
