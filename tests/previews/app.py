"""An app for the preview's tests, as a process of its own: ``app.py PORT NAME``, where PORT may be 0.

Once it listens it says its port in one line.

It speaks HTTP by hand, so that it can also misbehave:

    /head, /upload    200, JSON: the request's first line, its headers as they came, how often this connection was used,
                      how many bytes came in the body, with their sha256, and how often the path after the ? was asked
    /events           a stream of events, one each time ``tick`` is posted to /tick
    /raw?<base64>     exactly these bytes, then the end of the connection
    /exit             the process ends without an answer
    /drop             the connection ends without an answer
    /slow?<seconds>   200 after that time
    /gate             200 once it is let through: /let?<number> lets so many through, of those who are there or come
    /once             200, then the connection ends without a word about it
    /websocket        a WebSocket that echoes
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

Headers = list[tuple[str, str]]


class App:
    def __init__(self, name: str) -> None:
        self.name = name
        self.ticks = asyncio.Event()
        self.gate = asyncio.Semaphore(0)
        self.asked: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        used = 0
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                used += 1
                if not await self.answer(head, used, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def answer(self, head: str, used: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return True if the connection may be used again."""
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers: Headers = [
            (name.strip().lower(), value.strip()) for name, _, value in (x.partition(":") for x in lines)
        ]
        target = first.split(" ")[1]
        path, _, query = target.partition("?")
        self.asked[path] += 1
        match path:
            case "/raw":
                writer.write(base64.urlsafe_b64decode(query.partition("&")[0]))
                await writer.drain()
                return False
            case "/flood":
                await flood(writer)
                return False
            case "/exit":
                os._exit(3)
            case "/drop":
                return False
            case "/once":
                await reply(writer, {"name": self.name})
                return False
            case "/events":
                await self.events(writer)
                return False
            case "/websocket":
                await websocket(dict(headers), reader, writer)
                return False
        await self.wait(path, query)
        said: dict[str, Any] = {"name": self.name, "first": first, "headers": headers, "used": used}
        said["asked"] = self.asked[query]
        if path == "/tick":
            self.ticks.set()
        said.update(await receive(dict(headers), reader, writer))
        await reply(writer, said)
        return True

    async def wait(self, path: str, query: str) -> None:
        match path:
            case "/slow":
                await asyncio.sleep(float(query))
            case "/gate":
                await self.gate.acquire()
            case "/let":
                for _ in range(int(query)):
                    self.gate.release()

    async def events(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await writer.drain()
        for number in range(1000):
            event = f"data: {number}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await self.ticks.wait()
            self.ticks.clear()


async def receive(
    headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> dict[str, Any]:
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    digest, size = hashlib.sha256(), 0
    async for part in body(headers, reader):
        size += len(part)
        digest.update(part)
    return {"size": size, "sha256": digest.hexdigest()}


async def body(headers: dict[str, str], reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    if "chunked" in headers.get("transfer-encoding", ""):
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
        return
    left = int(headers.get("content-length", "0"))
    while left:
        part = await reader.read(min(left, 65_536))
        if not part:
            raise ConnectionResetError
        left -= len(part)
        yield part


async def reply(writer: asyncio.StreamWriter, said: dict[str, Any]) -> None:
    text = json.dumps(said).encode()
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
    )
    await writer.drain()


async def flood(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
    for _ in range(1000):
        writer.write(bytes(64_000))
        await writer.drain()


async def websocket(headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """RFC 6455, as far as short text messages go."""
    accept = hashlib.sha1(headers["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + base64.b64encode(accept)
        + b"\r\n\r\n"
    )
    while True:
        opcode, length = await reader.readexactly(2)
        size = length & 127
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        mask = await reader.readexactly(4)
        text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(await reader.readexactly(size)))
        prefix = bytes((opcode, size)) if size < 126 else bytes((opcode, 126)) + size.to_bytes(2, "big")
        writer.write(prefix + text)
        await writer.drain()
        if opcode & 15 == 8:
            return


async def main(port: int, name: str) -> None:
    server = await asyncio.start_server(App(name).serve, "127.0.0.1", port, limit=1 << 20)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
