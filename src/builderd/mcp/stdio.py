"""The server over stdio, beside an agent: a line is a message, and a bridge passes requests on to the service."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading

import httpx2

from builderd.client.retries import certificates, is_loopback
from builderd.mcp import messages
from builderd.mcp.bridge import MAX_CONNECTIONS, Bridge
from builderd.mcp.messages import Message

#: Seconds for the answers under way once the agent has closed its end. One that does not read them ends the process.
FINISH_SECONDS = 30.0
CHUNK_BYTES = 65_536


def serve(url: str, token: str, ca: str | None = None) -> None:
    """Serve one agent on stdin and stdout until it closes them. ``ca`` is a file with further certificates."""
    asyncio.run(_serve(url, token, ca))


async def _serve(url: str, token: str, ca: str | None) -> None:
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    threading.Thread(target=_read_lines, args=(asyncio.get_running_loop(), lines), daemon=True).start()
    async with httpx2.AsyncClient(
        base_url=url.rstrip("/"),
        headers={"Authorization": f"Bearer {token}"},
        verify=certificates(url, ca),
        trust_env=not is_loopback(url),
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS),
    ) as http:
        agent = _Agent(Bridge(http, write), lines)
        while (line := await lines.get()) is not None:
            agent.take(line)
        await agent.finish()


def write(message: Message) -> None:
    """Write a message as one line of ASCII."""
    sys.stdout.buffer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
    sys.stdout.buffer.flush()


class _Agent:
    """Requests of one agent that are not answered yet."""

    def __init__(self, bridge: Bridge, lines: asyncio.Queue[bytes | None]) -> None:
        self._bridge = bridge
        self._lines = lines
        self._calls: dict[str, asyncio.Task[None]] = {}

    def take(self, line: bytes) -> None:
        """Begin with a message. Notifications end here: a service without sessions has no use for them."""
        if not line.strip():
            return
        try:
            message = messages.parse(line)
        except messages.Malformed as error:
            write(messages.error(None, error.code, str(error)))
            return
        if messages.is_request(message):
            self._call(message)
        elif message.get("method") == "notifications/cancelled":
            self._cancel(messages.params_of(message).get("requestId"))

    def _call(self, request: Message) -> None:
        key = messages.id_key(request["id"])
        task = asyncio.create_task(self._bridge.pass_on(request))
        self._calls[key] = task
        task.add_done_callback(lambda ended: self._end(key, ended))

    def _end(self, key: str, ended: asyncio.Task[None]) -> None:
        if self._calls.get(key) is ended:
            del self._calls[key]
        if not ended.cancelled() and isinstance(ended.exception(), OSError):
            self._lines.put_nowait(None)  # nobody reads the answers any more

    def _cancel(self, request_id: object) -> None:
        """Leave a call, as an agent does over HTTP: the connection is closed, and what was begun goes on."""
        if task := self._calls.get(messages.id_key(request_id)):
            task.cancel()

    async def finish(self) -> None:
        """Wait a moment for the answers under way, then leave the others."""
        calls = set(self._calls.values())
        if calls:
            _, late = await asyncio.wait(calls, timeout=FINISH_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[bytes | None]) -> None:
    """Put the lines of stdin into the queue, then None. Files, pipes and terminals are read alike."""

    def put(line: bytes | None) -> None:
        try:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        except RuntimeError:  # the loop has ended before the agent
            raise SystemExit from None

    parts: list[bytes] = []
    # Not by sys.stdin: the interpreter's end would wait for the lock of a blocked reader.
    while chunk := os.read(0, CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        parts.append(first)
        for one in others:
            put(b"".join(parts))
            parts = [one]
    if any(parts):
        put(b"".join(parts))
    put(None)
