"""A request that could not be sent is no answer of the app's."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from builderd.adapters.testers.visits import PREFACE, Visitor
from builderd.domain.errors import MachineFault
from builderd.domain.previews import Address
from builderd.ports.testers import Target

NOBODY = Target(Address("127.0.0.1", 1), "http://app.localhost")


async def test_refused_connection_is_the_apps_failure() -> None:
    visitor = Visitor()
    assert (await visitor.visit(NOBODY, "/", 5)).fault == "the connection was refused"
    await visitor.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
async def test_unsendable_request_is_a_machine_fault(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Exhausted(socket.socket):
        def connect(self, _address: object) -> None:
            raise OSError(number, "exhausted")

    visitor = Visitor()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Exhausted)
        with pytest.raises(MachineFault):
            await visitor.visit(NOBODY, "/", 5)
    await visitor.close()


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)) + bytes(6), ""),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 'does not speak HTTP/2 without TLS (its answer begins with "HTTP/1.1 ")'),
        (b"\x1b[31m\r\nbad!!", r'begins with "\x1b[31m\r\nba"'),
        (b"", "it closed the connection"),
    ],
)
async def test_app_of_http2_is_asked_for_its_settings(answer: bytes, fault: str) -> None:
    asked = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readexactly(len(PREFACE)))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        visitor = Visitor()
        visit = await visitor.visit(Target(Address("127.0.0.1", port), "http://app.localhost", h2c=True), "/", 5)
        await visitor.close()
    assert asked == [PREFACE]
    assert (visit.status, fault in visit.fault) == (None if fault else 200, True)
