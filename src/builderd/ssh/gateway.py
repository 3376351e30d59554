"""The SSH gateway: ``ssh -p PORT <token>@host`` opens a session in the builder's sandbox.

The token is the user name and enough (SSH's authentication "none", RFC 4252 section 5.2). What runs in a session runs
in the sandbox, as the app's user; nothing is ever run on the host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import asyncssh

from builderd.domain.errors import BuilderdError, Unauthenticated
from builderd.domain.processes import LOGIN_SHELL, ProcessSpec, Window
from builderd.domain.ssh import Grant
from builderd.services import ssh, wake
from builderd.services.application import Application
from builderd.ssh import bridge
from builderd.ssh.relay import LOCAL, relay_to_port, relay_to_socket
from builderd.ssh.session import Session
from builderd.ssh.throttle import Attempt, Throttle

LOGIN_SECONDS = 20
#: After so many silent intervals of so many seconds a client is gone.
KEEPALIVE_SECONDS, KEEPALIVES = 30, 4
#: A grant is looked at so often; at once when it is revoked here.
LOOK_SECONDS = 5.0
#: When the port is taken, try again after so many seconds.
BIND_RETRY = 15.0
#: Logins of one grant at the same time. An editor has one or two for a window, scp and rsync have one for each call.
MAX_LOGINS = 20
#: Sessions and forwarded connections of one login at the same time.
MAX_CHANNELS = 64
SFTP = ("/usr/lib/openssh/sftp-server",)
#: Variables that a client may hand over.
TAKEN = frozenset({"LANG", "LC_ALL", "LC_CTYPE", "COLORTERM", "TZ"})

log = logging.getLogger(__name__)


class Gateway:
    def __init__(self, application: Application, host_key: asyncssh.SSHKey) -> None:
        self.application = application
        self.throttle = Throttle()
        self._key = host_key
        self._tasks: set[asyncio.Task[None]] = set()
        #: Logins now, by grant.
        self._logins = Counter[str]()

    async def serve(self, host: str, port: int) -> None:
        """Listen until cancelled; where the port is taken, as soon as it is free."""
        while True:
            try:
                server = await self.listen(host, port)
            except OSError as error:
                log.warning("SSH is not served: cannot listen on %s:%d: %s", host, port, error.strerror or error)
                await asyncio.sleep(BIND_RETRY)
                continue
            log.info("SSH listens on %s:%d", host, server.get_port())
            try:
                await server.wait_closed()
            finally:
                server.close()
                await self.finish()

    def is_full(self, grant: Grant) -> bool:
        """Whether this grant has no login left."""
        return self._logins[grant.id] >= MAX_LOGINS

    def log_in(self, grant: Grant) -> None:
        """Count a login; ``log_out`` must follow."""
        self._logins[grant.id] += 1

    def log_out(self, grant: Grant) -> None:
        self._logins[grant.id] -= 1
        if not self._logins[grant.id]:
            del self._logins[grant.id]

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Something short that outlives its connection."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for what goes on in the background."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listen(self, host: str, port: int) -> asyncssh.SSHAcceptor:
        """The listener; every connection is cut when its grant ends."""
        return await asyncssh.listen(
            host,
            port,
            server_factory=lambda: Login(self),
            server_host_keys=[self._key],
            server_version="builderd",
            encoding=None,
            line_editor=False,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_scp=False,
            compression_algs=None,
            login_timeout=LOGIN_SECONDS,
            keepalive_interval=KEEPALIVE_SECONDS,
            keepalive_count_max=KEEPALIVES,
        )


class Login(asyncssh.SSHServer):
    """One connection, from its first byte to its last."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._app = gateway.application
        self._connection: asyncssh.SSHServerConnection | None = None
        self._address = ""
        self._attempt: Attempt | None = None
        self._begun = time.monotonic()
        self._watching: asyncio.Task[None] | None = None
        self._channels = 0
        self.grant: Grant | None = None

    # The connection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._address = str(conn.get_extra_info("peername")[0])
        # A cipher is chosen by key exchange, which costs a client something too.
        self._attempt = self._gateway.throttle.enter(
            self._address, conn.abort, lambda: bool(conn.get_extra_info("send_cipher"))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        if self._watching and self.grant:
            self._watching.cancel()
            self._gateway.log_out(self.grant)
            self._gateway.background(self._record_end(self.grant))

    def _leave(self) -> None:
        if self._attempt:
            self._gateway.throttle.leave(self._attempt)

    async def begin_auth(self, username: str) -> bool:
        """Whether more than the token is wanted, which then fails: there is nothing more.

        The token is looked up first: whoever has a right one never waits for the wrong ones of the same address.
        Raises ``DisconnectError`` for one login too many, and for one wrong token too many at the same time.
        """
        now = self._app.clock.now()
        try:
            # Reads do not wait for each other: a flood of wrong tokens keeps nobody from writing.
            await self._app.store.read(lambda uow: ssh.valid_grant(uow, username, now))
            self.grant = await self._app.store.write(lambda uow: ssh.admit(uow, username, now))
        except Unauthenticated as refusal:
            await self._refuse(refusal)
            return True
        # It logs in right after this, with nothing between that could log in another.
        if self._gateway.is_full(self.grant):
            reason = f"At most {MAX_LOGINS} logins with one SSH token at a time."
            raise asyncssh.DisconnectError(asyncssh.DISC_TOO_MANY_CONNECTIONS, reason)
        return False

    async def _refuse(self, refusal: Unauthenticated) -> None:
        """Say so after a while that grows with the wrong tokens of this address."""
        assert self._attempt is not None, "it was counted when it connected"
        delay = self._gateway.throttle.failed(self._attempt, time.monotonic())
        if delay is None:
            reason = "Too many wrong SSH tokens from this address at the same time: try again in some seconds."
            raise asyncssh.DisconnectError(asyncssh.DISC_TOO_MANY_CONNECTIONS, reason)
        await asyncio.sleep(delay)
        if self._connection and not self._connection.is_closed():
            self._connection.send_auth_banner(f"{refusal.message}\r\n")

    def auth_completed(self) -> None:
        self._leave()
        assert self.grant is not None, "only a grant logs in"
        self._gateway.log_in(self.grant)
        self._watching = asyncio.ensure_future(self._watch(self.grant))
        self._gateway.background(self._record_begin(self.grant))

    async def _watch(self, grant: Grant) -> None:
        """Cut everything when the grant is revoked or expires, or the builder goes.

        Its end comes by the clock, whatever the store answers; a store that does not answer is asked again.
        """
        signals, clock = self._app.signals, self._app.clock
        while (left := (grant.expires_at - clock.now()).total_seconds()) > 0:
            seen = signals.count(grant.builder_id)
            try:
                async with asyncio.timeout(left):
                    if not await self._app.store.read(lambda uow: ssh.holds(uow, grant.id, clock.now())):
                        break
            except Exception:
                log.warning("whether the SSH grant %s still holds is not known for a moment", grant.id, exc_info=True)
            await signals.wait(grant.builder_id, seen, min(LOOK_SECONDS, left))
        if self._connection:
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, "The SSH token was revoked or is over.")

    async def _record_begin(self, grant: Grant) -> None:
        now = self._app.clock.now()
        await self._app.store.write(lambda uow: ssh.opened(uow, grant, self._address, now))

    async def _record_end(self, grant: Grant) -> None:
        now, seconds = self._app.clock.now(), time.monotonic() - self._begun
        await self._app.store.write(lambda uow: ssh.closed(uow, grant, self._address, seconds, now))

    # What goes on in it

    def session_requested(self) -> Session:
        """A channel for a shell, a command or sftp."""
        self._take_channel()
        return Session(self.session, self._give_channel)

    async def session(self, channel: asyncssh.SSHServerProcess[bytes]) -> None:
        """A shell, a command or sftp, to its end. What fails ends this channel alone; raised, it would end all."""
        assert self.grant is not None, "only a grant has sessions"
        try:
            code = await self._joined(self.grant, channel)
        except BuilderdError as error:
            _end_with(channel, error.message)
        except Exception:
            log.exception("a session of the SSH grant %s failed", self.grant.id)
            _end_with(channel, "The session failed: try again shortly.")
        else:
            channel.close() if code is None else channel.exit(code)

    async def _joined(self, grant: Grant, channel: asyncssh.SSHServerProcess[bytes]) -> int | None:
        spec = _spec(channel)
        sandbox = (await ssh.sandbox_of(self._app, grant)).id
        async with wake.going_on(self._app, sandbox), self._app.engine.open_process(sandbox, spec) as process:
            return await bridge.join(channel, process)

    def _take_channel(self) -> None:
        if self._channels >= MAX_CHANNELS:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, f"At most {MAX_CHANNELS} at a time.")
        self._channels += 1

    def _give_channel(self) -> None:
        self._channels -= 1

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> asyncssh.SSHSocketSessionFactory:
        """A forwarded connection: to the sandbox's own ports, nowhere else."""
        if dest_host.lower() not in LOCAL:
            reason = "Only the app's own ports are reached: forward to localhost."
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, reason)
        return self._led(relay_to_port(dest_port))

    def unix_connection_requested(self, dest_path: str) -> asyncssh.SSHSocketSessionFactory:
        """The same to a Unix socket of the sandbox: none of the host's is ever looked for."""
        if "\0" in dest_path:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "That is no path.")
        return self._led(relay_to_socket(dest_path))

    def _led(self, program: tuple[str, ...]) -> asyncssh.SSHSocketSessionFactory:
        self._take_channel()

        async def lead(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
            try:
                await self._forward(ProcessSpec(program), reader, writer)
            finally:
                self._give_channel()

        return lead

    async def _forward(
        self, spec: ProcessSpec, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]
    ) -> None:
        assert self.grant is not None, "only a grant forwards"
        try:
            sandbox = (await ssh.sandbox_of(self._app, self.grant)).id
            async with wake.going_on(self._app, sandbox), self._app.engine.open_process(sandbox, spec) as process:
                await bridge.forward(reader, writer, process)
        except BuilderdError as error:
            log.info("A forwarded connection of grant %s ended: %s", self.grant.id, error.message)
            writer.close()
        except Exception:
            log.exception("a forwarded connection of the SSH grant %s failed", self.grant.id)
            writer.close()


def _end_with(channel: asyncssh.SSHServerProcess[bytes], message: str) -> None:
    """Tell the client why, if it is still there."""
    with suppress(OSError):
        channel.stderr.write(f"{message}\r\n".encode())
    channel.exit(1)


def _spec(channel: asyncssh.SSHServerProcess[bytes]) -> ProcessSpec:
    """What the client asks for. The command line is its own affair: it is neither logged nor kept."""
    env = {name: value for name, value in channel.env.items() if name in TAKEN and "\0" not in value}
    if channel.subsystem is not None:
        return ProcessSpec(SFTP if channel.subsystem == "sftp" else ("/bin/false",))
    argv = ("/bin/bash", "-c", channel.command) if channel.command is not None else LOGIN_SHELL
    if channel.term_type is None:
        return ProcessSpec(argv, env=env)
    columns, rows, *_ = channel.term_size
    window = Window(min(columns, 1000) or 80, min(rows, 1000) or 24)
    return ProcessSpec(argv, env={**env, "TERM": channel.term_type}, window=window)
