"""A client of SSH at the gateway, on fakes: when it is cut, and what it may have open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncssh
import pytest
from asyncssh.channel import SSHChannel
from tests.application import PATIENCE, World, fake_world
from tests.fakes.processes import Answer, FakeProcess

from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.core.errors import InvalidState, StoreUnavailable
from builderd.executions import ssh
from builderd.executions.model import Window
from builderd.sessions import revocations
from builderd.ssh import gateway
from builderd.ssh.gateway import Gateway
from builderd.tokens import service as tokens
from builderd.tokens.model import Scope

#: Minutes that the grant is valid.
VALID = 5


@dataclass
class Echo:
    process: asyncssh.SSHClientProcess[bytes]

    async def answers(self) -> bool:
        """Return True if the session still answers."""
        self.process.stdin.write(b"ping")
        async with asyncio.timeout(PATIENCE):
            return await self.process.stdout.readexactly(4) == b"ping"

    async def close(self) -> None:
        self.process.close()
        await self.process.wait_closed()


@dataclass
class Logged:
    """A client that is logged in."""

    world: World
    builder: Builder
    client: asyncssh.SSHClientConnection
    connect: Callable[..., Awaitable[asyncssh.SSHClientConnection]]
    gateway: Gateway
    port: int

    async def echo(self) -> Echo:
        """A session that answers what it is sent."""
        session = Echo(await self.client.create_process("echo", encoding=None))
        assert await session.answers()
        return session

    async def is_cut(self) -> None:
        """Wait until the gateway has ended the connection."""
        await self.world.until(self.client.is_closed)


@asynccontextmanager
async def logged_in() -> AsyncIterator[Logged]:
    async with fake_world() as world:
        async with world.reconciling():
            builder = await world.create()
        now = world.clock.now()
        _, _, token = await world.application.store.write(
            lambda uow: ssh.grant(uow, world.caller, builder.id, VALID, now)
        )
        world.engine.answer("/bin/bash -c echo", Answer(echoes=True))
        served = Gateway(world.application, asyncssh.generate_private_key("ssh-ed25519"))
        server = await served.listen("127.0.0.1", 0)
        options: dict[str, Any] = {"known_hosts": None, "client_keys": None, "config": None, "agent_path": None}

        clients: list[asyncssh.SSHClientConnection] = []

        async def connect(username: str = token) -> asyncssh.SSHClientConnection:
            clients.append(await asyncssh.connect("127.0.0.1", server.get_port(), username=username, **options))
            return clients[-1]

        client = await connect()
        try:
            yield Logged(world, builder, client, connect, served, server.get_port())
        finally:
            for client in clients:
                client.abort()
            server.close()
            await server.wait_closed()
            await asyncio.gather(*served._tasks)


def break_store(world: World, monkeypatch: pytest.MonkeyPatch, failures: float) -> list[int]:
    """The next so many reads fail; how many were asked for since is the length of the answer."""
    store, asked = world.application.store, list[int]()
    read = store.read

    async def faulty(look: Any) -> Any:
        asked.append(1)
        if len(asked) <= failures:
            raise StoreUnavailable("The database does not answer.")
        return await read(look)

    monkeypatch.setattr(store, "read", faulty)
    return asked


async def test_short_outage_of_the_database_does_not_keep_a_revoked_session_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateway, "CHECK_SECONDS", 0.01)
    async with logged_in() as logged:
        world, now = logged.world, logged.world.clock.now()
        asked = break_store(world, monkeypatch, 1)
        await world.until(lambda: asked)
        await world.application.store.write(lambda uow: ssh.revoke(uow, world.caller, logged.builder.id, now))
        await logged.is_cut()
    assert "SSH grant check failed" in caplog.text


async def test_a_session_is_cut_with_the_api_token_that_made_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The revocation tells the gateway, which would look again in a year only."""
    monkeypatch.setattr(gateway, "CHECK_SECONDS", 365 * 86_400.0)
    async with logged_in() as logged:
        application, now = logged.world.application, logged.world.clock.now()
        made, _ = await application.store.write(lambda uow: tokens.create(uow, "acme", "ci", now, scopes=[Scope.WRITE]))
        caller = Caller.of(made)
        _, _, token = await application.store.write(lambda uow: ssh.grant(uow, caller, logged.builder.id, VALID, now))
        mine, logged.client = logged.client, await logged.connect(token)
        await logged.echo()
        await revocations.end(application, made.tenant_id, made.id, "token admin")
        await logged.is_cut()
        assert not mine.is_closed()


async def test_a_session_is_cut_when_its_time_is_over_even_if_the_database_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway, "CHECK_SECONDS", 0.01)
    async with logged_in() as logged:
        asked = break_store(logged.world, monkeypatch, float("inf"))
        await logged.world.until(lambda: len(asked) >= 3)
        assert not logged.client.is_closed()
        logged.world.clock.move(VALID * 60)
        await logged.is_cut()


async def test_login_over_the_limit_is_closed_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway, "MAX_LOGINS", 2)
    async with logged_in() as logged:
        first, second = await logged.echo(), await logged.connect()
        with pytest.raises(asyncssh.DisconnectError, match="At most 2 logins with one SSH token at a time") as cut:
            await logged.connect()
        assert cut.value.code == asyncssh.DISC_TOO_MANY_CONNECTIONS
        assert await first.answers()
        second.close()
        await logged.world.until(lambda: _logs_in(logged))


async def _logs_in(logged: Logged) -> bool:
    try:
        return bool(await logged.connect())
    except asyncssh.DisconnectError:
        return False


async def test_a_window_is_never_larger_than_a_terminal_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[Window] = []
    monkeypatch.setattr(FakeProcess, "resize", lambda _, window: windows.append(window))
    async with logged_in() as logged:
        session = Echo(await logged.client.create_process("echo", encoding=None, term_type="xterm"))
        session.process.change_terminal_size(1 << 31, 65_536)
        assert await session.answers()
    assert windows == [Window(65_535, 65_535)]


async def test_channel_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "MAX_CHANNELS", 2)
    async with logged_in() as logged:
        first, second = await logged.echo(), await logged.echo()
        with pytest.raises(asyncssh.ChannelOpenError, match="At most 2 sessions and forwarded connections"):
            await logged.echo()
        with pytest.raises(asyncssh.ChannelOpenError, match="At most 2 sessions and forwarded connections"):
            await logged.client.open_connection("localhost", 8000)
        assert await first.answers()
        assert await second.answers()
        await first.close()
        await logged.world.until(lambda: _opens(logged))
        assert await second.answers()


async def _opens(logged: Logged) -> bool:
    try:
        await (await logged.echo()).close()
    except asyncssh.ChannelOpenError:
        return False
    return True


async def test_a_channel_that_asks_for_nothing_counts_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "MAX_CHANNELS", 1)
    async with logged_in() as logged:
        silent: SSHChannel[bytes] = SSHChannel(logged.client, asyncio.get_running_loop(), None, "strict", 65536, 32768)
        await silent._open(b"session")
        assert not await _opens(logged)
        silent.close()
        await logged.world.until(lambda: _opens(logged))


async def test_a_session_or_a_forwarded_connection_that_fails_ends_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with logged_in() as logged:
        other = await logged.echo()
        monkeypatch.setattr(logged.world.engine, "open_process", _broken)
        done = await logged.client.run("true", check=False)
        assert (done.exit_status, done.stderr) == (1, "The session failed: try again shortly.\r\n")
        assert await other.answers()
        reader, _ = await logged.client.open_connection("localhost", 8000, encoding=None)
        assert await reader.read() == b""
        assert await other.answers()
    assert caplog.text.count("RuntimeError: something unforeseen") == 2


def _broken(*_: Any) -> Any:
    raise RuntimeError("something unforeseen")


async def test_a_client_that_leaves_before_it_is_refused_keeps_its_other_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused, asked = asyncio.Event(), asyncio.Event()

    async def refuse(*_: Any) -> Any:
        asked.set()
        await refused.wait()
        raise InvalidState("The builder does not run.")

    async with logged_in() as logged:
        other = await logged.echo()
        monkeypatch.setattr(ssh, "sandbox_of", refuse)
        leaving = await logged.client.create_process("echo")
        await asked.wait()
        await Echo(leaving).close()
        refused.set()
        assert await other.answers()
        assert await other.answers()
