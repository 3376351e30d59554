"""Logins that a standby passes on: the client's address comes in a header, and nothing begins without one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from tests.application import PATIENCE, World, fake_world
from tests.fakes.processes import Answer

from builderd.api.server.servers import bind_path
from builderd.operations import proxy_header
from builderd.services import ssh
from builderd.ssh import passed_on
from builderd.ssh.gateway import Gateway
from builderd.ssh.throttle import Throttle

CLIENT = ("203.0.113.7", 4711)


@dataclass
class Served:
    """A gateway that takes logins at a Unix socket, and the addresses that it counted."""

    world: World
    path: Path
    token: str
    addresses: list[str] = field(default_factory=list)

    def dial(self, content: bytes) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.path))
        connection.sendall(content)
        connection.setblocking(False)
        return connection

    async def log_in(self, username: str) -> asyncssh.SSHClientConnection:
        options: dict[str, Any] = {"known_hosts": None, "client_keys": None, "config": None, "agent_path": None}
        connection = self.dial(proxy_header.build(CLIENT, {0xE0: "further field"}))
        return await asyncssh.connect(sock=connection, username=username, **options)


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    async with fake_world() as world:
        async with world.reconciling():
            builder = await world.create()
        now = world.clock.now()
        _, _, token = await world.application.store.write(lambda uow: ssh.grant(uow, world.caller, builder.id, 5, now))
        world.engine.answer("/bin/bash -c hello", Answer(output="hi\n"))
        found = Served(world, tmp_path / "pssh.sock", token)
        enter = Throttle.enter

        def counted(self: Throttle, address: str, abort: Callable[[], None], is_costly: Callable[[], bool]) -> Any:
            found.addresses.append(address)
            return enter(self, address, abort, is_costly)

        monkeypatch.setattr(Throttle, "enter", counted)
        gateway = Gateway(world.application, asyncssh.generate_private_key("ssh-ed25519"))
        serving = asyncio.create_task(gateway.serve_passed_on(bind_path(found.path, None)))
        try:
            yield found
        finally:
            serving.cancel()
            await asyncio.wait({serving})
            await gateway.finish()


async def test_login_counts_for_the_client_that_the_header_names(served: Served) -> None:
    async with await served.log_in(served.token) as client:
        assert (await client.run("hello")).stdout == "hi\n"
    assert served.addresses == [CLIENT[0]]


async def test_wrong_token_is_refused_and_counts_for_its_client(served: Served) -> None:
    with pytest.raises(asyncssh.PermissionDenied):
        await served.log_in("bdh_wrong")
    async with await served.log_in(served.token):
        assert served.addresses == [CLIENT[0]] * 2


@pytest.mark.parametrize(
    "content",
    [
        b"SSH-2.0-client\r\n",
        b"PROXY TCP4 203.0.113.7 127.0.0.1 1 2\r\nSSH-2.0-client\r\n",
        proxy_header.SIGNATURE + b"\x20\x00\x00\x00SSH-2.0-client\r\n",
        proxy_header.SIGNATURE + b"\x21\x11\xff\xff" + bytes(1000),
        proxy_header.SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
    ],
)
async def test_connection_without_a_header_is_closed(served: Served, content: bytes) -> None:
    connection = served.dial(content)
    async with asyncio.timeout(PATIENCE):
        assert await _read(connection) == b""
    assert served.addresses == []
    async with await served.log_in(served.token):
        pass


async def test_header_that_does_not_come_in_time_ends_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passed_on, "HEADER_SECONDS", 0.1)
    connection = served.dial(proxy_header.SIGNATURE)
    async with asyncio.timeout(PATIENCE):
        assert await _read(connection) == b""


async def _read(connection: socket.socket) -> bytes:
    with connection:
        try:
            return await asyncio.get_running_loop().sock_recv(connection, 1000)
        except ConnectionResetError:
            return b""
