"""The request of the challenge path: what it sends, what it reads, and from where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from builderd.adapters.domains.name_servers import MAX_REPLY, HttpChallengeProbe
from builderd.ports.previews import ProbeReply

PATH = "/.well-known/acme-challenge/token"


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that sends this reply; its port, and the requests that it gets."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(reply)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], asked


async def get(reply: bytes) -> ProbeReply:
    async with answering(reply) as (port, _):
        return await HttpChallengeProbe().get("127.0.0.1", port, "shop.example.com", PATH)


async def test_the_host_is_asked_for_at_exactly_this_address() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\nanswer") as (port, asked):
        reply = await HttpChallengeProbe().get("127.0.0.1", port, "shop.example.com", PATH)
    assert reply == ProbeReply(200, "answer", "nginx")
    assert asked[0].startswith(f"GET {PATH} HTTP/1.1\r\nHost: shop.example.com:{port}\r\n".encode())


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n\r\n", b"HTTP/1.1 two\r\n\r\n", b"\xff" * 99])
async def test_reply_that_is_no_http_is_not_quoted(reply: bytes) -> None:
    assert await get(reply) == ProbeReply(None, error="what answers does not speak HTTP")


async def test_a_redirect_is_not_followed_and_an_endless_reply_cut_off() -> None:
    assert (await get(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n")).status == 302
    endless = await get(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10 * MAX_REPLY)
    assert len(endless.body) < MAX_REPLY


async def test_closed_port_and_silence_are_reported() -> None:
    async with answering(b"") as (port, _):
        pass
    assert "refused" in (await HttpChallengeProbe().get("127.0.0.1", port, "a.example", PATH)).error

    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(keep_silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        reply = await HttpChallengeProbe(0.05).get("127.0.0.1", port, "a.example", PATH)
    assert reply == ProbeReply(None, error="no answer within 0.05 s")
