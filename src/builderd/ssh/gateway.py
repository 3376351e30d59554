"""The SSH gateway: ``ssh -p PORT <token>@host`` opens a session in the builder's sandbox.

The user name is the token, and no other proof is asked for (SSH's authentication "none", RFC 4252 section 5.2).
Sessions run in the sandbox, as the app's user; nothing runs on the host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncssh

from builderd.application import Application
from builderd.core.addresses import network_of
from builderd.core.errors import BuilderdError, Unauthenticated
from builderd.engine.port import Process
from builderd.executions import ssh
from builderd.executions.model import LOGIN_SHELL, Grant, ProcessSpec, Window
from builderd.idle import service as wake
from builderd.ssh import session
from builderd.ssh.session import LOCAL_NAMES, Session, relay_to_port, relay_to_socket

LOGIN_SECONDS = 20
#: A client that leaves this many keepalives in a row unanswered is disconnected; the interval is in seconds.
KEEPALIVE_SECONDS, KEEPALIVES = 30, 4
#: Seconds between two checks of a grant; a revocation in this process is noticed at once.
CHECK_SECONDS = 5.0
#: Seconds until the next try when the port is taken.
BIND_RETRY = 15.0
#: Concurrent logins of one grant. An editor takes one or two for each window, scp and rsync one for each call.
MAX_LOGINS = 20
#: Concurrent sessions and forwarded connections of one login.
MAX_CHANNELS = 64
SFTP = ("/usr/lib/openssh/sftp-server",)
#: Environment variables that a client may set.
ACCEPTED_ENV = frozenset({"LANG", "LC_ALL", "LC_CTYPE", "COLORTERM", "TZ"})

log = logging.getLogger(__name__)


class Gateway:
    def __init__(self, application: Application, host_key: asyncssh.SSHKey) -> None:
        self.application = application
        self.throttle = Throttle()
        self._key = host_key
        self._tasks: set[asyncio.Task[None]] = set()
        #: Open logins, by grant id.
        self.logins = Counter[str]()

    async def serve(self, host: str, port: int) -> None:
        """Listen until cancelled; while the port is taken, retry every ``BIND_RETRY`` seconds."""
        while True:
            try:
                server = await self.listen(host, port)
            except OSError as error:
                reason = error.strerror or error
                log.warning("SSH gateway cannot listen, retrying host=%s port=%d error=%s", host, port, reason)
                await asyncio.sleep(BIND_RETRY)
                continue
            log.info("SSH gateway listening host=%s port=%d", host, server.get_port())
            try:
                await server.wait_closed()
            finally:
                server.close()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a short task that outlives its connection."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def listen(self, host: str, port: int) -> asyncssh.SSHAcceptor:
        """Return a listener; each of its connections is closed when its grant ends."""
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
    """One SSH connection: login, sessions, forwarded connections, disconnect."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._app = gateway.application
        self._connection: asyncssh.SSHServerConnection | None = None
        self._address = ""
        self._attempt: Attempt | None = None
        self._started = time.monotonic()
        self._watch_task: asyncio.Task[None] | None = None
        self._channels = 0
        self.grant: Grant | None = None

    # The connection

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._address = str(conn.get_extra_info("peername")[0])
        # A cipher is set once key exchange is done, which costs the client CPU time too.
        self._attempt = self._gateway.throttle.enter(
            self._address, conn.abort, lambda: bool(conn.get_extra_info("send_cipher"))
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        if self._watch_task and self.grant:
            self._watch_task.cancel()
            self._gateway.logins -= Counter([self.grant.id])
            self._gateway.background(self._record_end(self.grant))

    def _leave(self) -> None:
        if self._attempt:
            self._gateway.throttle.leave(self._attempt)

    async def begin_auth(self, username: str) -> bool:
        """Return False when the token logs in; True asks for another authentication method, of which there is none.

        The token is looked up before anything is delayed, so wrong tokens from an address never delay a valid one.
        Raises ``DisconnectError`` above the limit of logins of a grant.
        """
        now = self._app.clock.now()
        try:
            # Reads run concurrently, so a flood of wrong tokens does not block the store's writer.
            await self._app.store.read(lambda uow: ssh.valid_grant(uow, username, now))
            self.grant = await self._app.store.write(lambda uow: ssh.admit(uow, username, now))
        except Unauthenticated as refusal:
            await self._refuse(refusal)
            return True
        # asyncssh calls auth_completed right after this without an await, so no other login is counted in between.
        if self._gateway.logins[self.grant.id] >= MAX_LOGINS:
            reason = f"At most {MAX_LOGINS} logins with one SSH token at a time."
            raise asyncssh.DisconnectError(asyncssh.DISC_TOO_MANY_CONNECTIONS, reason)
        return False

    async def _refuse(self, refusal: Unauthenticated) -> None:
        """Send the refusal after a delay."""
        assert self._attempt is not None, "connection_made counts the attempt"
        self._attempt.wrong = True
        await asyncio.sleep(REFUSAL_SECONDS)
        if self._connection and not self._connection.is_closed():
            self._connection.send_auth_banner(f"{refusal.message}\r\n")

    def auth_completed(self) -> None:
        self._leave()
        assert self.grant is not None, "begin_auth sets the grant"
        self._gateway.logins[self.grant.id] += 1
        self._watch_task = asyncio.ensure_future(self._watch(self.grant))
        self._gateway.background(self._record_begin(self.grant))

    async def _watch(self, grant: Grant) -> None:
        """Disconnect when the grant is revoked or expires, or its builder is deleted.

        Expiry is a time that passes from the login on; while the store is unavailable the revocation check is retried.
        """
        signals, clock = self._app.signals, self._app.clock
        end = clock.passed() + (grant.expires_at - clock.now()).total_seconds()
        while (left := end - clock.passed()) > 0:
            seen = signals.count(grant.builder_id)
            try:
                async with asyncio.timeout(left):
                    if not await self._app.store.read(lambda uow: ssh.is_good_still(uow, grant.id, clock.now())):
                        break
            except Exception:
                log.warning("SSH grant check failed, retrying grant=%s", grant.id, exc_info=True)
            await signals.wait(grant.builder_id, seen, min(CHECK_SECONDS, left))
        if self._connection:
            self._connection.disconnect(asyncssh.DISC_BY_APPLICATION, "The SSH token was revoked or has expired.")

    async def _record_begin(self, grant: Grant) -> None:
        now = self._app.clock.now()
        await self._app.store.write(lambda uow: ssh.opened(uow, grant, self._address, now))

    async def _record_end(self, grant: Grant) -> None:
        now, seconds = self._app.clock.now(), time.monotonic() - self._started
        await self._app.store.write(lambda uow: ssh.closed(uow, grant, self._address, seconds, now))

    # Sessions and forwarded connections

    def session_requested(self) -> Session:
        """Open a channel for a shell, a command or sftp."""
        self._count_channel()
        return Session(self.session, self._release_channel)

    async def session(self, channel: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run a shell, a command or sftp to its end. Errors are caught: a raised one would close the whole login."""
        assert self.grant is not None, "begin_auth sets the grant"
        try:
            async with self._open_process(_spec(channel)) as process:
                code = await session.join(channel, process)
        except BuilderdError as error:
            _end_with(channel, error.message)
        except Exception:
            log.exception("SSH session failed grant=%s", self.grant.id)
            _end_with(channel, "The session failed: try again shortly.")
        else:
            channel.close() if code is None else channel.exit(code)

    @asynccontextmanager
    async def _open_process(self, spec: ProcessSpec) -> AsyncIterator[Process]:
        assert self.grant is not None, "begin_auth sets the grant"
        sandbox = (await ssh.sandbox_of(self._app, self.grant)).id
        sandboxes = self._app.engine.sandboxes
        async with wake.keep_awake(self._app, sandbox), sandboxes.open_process(sandbox, spec) as process:
            yield process

    def _count_channel(self) -> None:
        if self._channels >= MAX_CHANNELS:
            reason = f"At most {MAX_CHANNELS} sessions and forwarded connections at a time: close one."
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, reason)
        self._channels += 1

    def _release_channel(self) -> None:
        self._channels -= 1

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> asyncssh.SSHSocketSessionFactory:
        """Forward a connection to a port of the sandbox; other hosts are refused."""
        if dest_host.lower() not in LOCAL_NAMES:
            reason = "Only the sandbox's own ports can be reached: forward to localhost."
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, reason)
        return self._forwarded_by(relay_to_port(dest_port))

    def unix_connection_requested(self, dest_path: str) -> asyncssh.SSHSocketSessionFactory:
        """Forward a connection to a Unix socket of the sandbox; the relay resolves the path inside the sandbox."""
        if "\0" in dest_path:
            reason = "A socket's path must not contain a NUL character."
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, reason)
        return self._forwarded_by(relay_to_socket(dest_path))

    def _forwarded_by(self, program: tuple[str, ...]) -> asyncssh.SSHSocketSessionFactory:
        """Return a handler that runs this relay program in the sandbox for the connection."""
        self._count_channel()

        async def handle(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
            assert self.grant is not None, "begin_auth sets the grant"
            try:
                async with self._open_process(ProcessSpec(program)) as process:
                    await session.forward(reader, writer, process)
            except BuilderdError as error:
                log.info("forwarded SSH connection refused grant=%s error=%s", self.grant.id, error.message)
                writer.close()
            except Exception:
                log.exception("forwarded SSH connection failed grant=%s", self.grant.id)
                writer.close()
            finally:
                self._release_channel()

        return handle


def _end_with(channel: asyncssh.SSHServerProcess[bytes], message: str) -> None:
    """Write the reason to the client, if it is still connected, and exit with 1."""
    with suppress(OSError):
        channel.stderr.write(f"{message}\r\n".encode())
    channel.exit(1)


def _spec(channel: asyncssh.SSHServerProcess[bytes]) -> ProcessSpec:
    """Return the process that the client asks for. Its command line may contain secrets: it is not logged or stored."""
    env = {name: value for name, value in channel.env.items() if name in ACCEPTED_ENV and "\0" not in value}
    if channel.subsystem is not None:
        return ProcessSpec(SFTP if channel.subsystem == "sftp" else ("/bin/false",))
    argv = ("/bin/bash", "-c", channel.command) if channel.command is not None else LOGIN_SHELL
    if channel.term_type is None:
        return ProcessSpec(argv, env=env, outlives_service=True)
    columns, rows, *_ = channel.term_size
    window = Window(min(columns, 1000) or 80, min(rows, 1000) or 24)
    return ProcessSpec(argv, env={**env, "TERM": channel.term_type}, window=window, outlives_service=True)


#: Seconds until a wrong token is refused. Its connection counts until then.
REFUSAL_SECONDS = 1.0
#: Connections before login, of one address and in all. One more closes another one, never itself.
MAX_PENDING, MAX_PENDING_TOTAL = 100, 500


@dataclass(eq=False, slots=True)
class Attempt:
    """A connection before login. ``close`` ends it; ``has_keys`` returns True once key exchange is done."""

    key: str
    close: Callable[[], None]
    has_keys: Callable[[], bool]
    wrong: bool = False


class Throttle:
    def __init__(self) -> None:
        #: Connections before login by address, the oldest first.
        self._pending: dict[str, dict[Attempt, None]] = {}
        self._total = 0

    def enter(self, address: str, close: Callable[[], None], has_keys: Callable[[], bool]) -> Attempt:
        """Count a new connection; ``leave`` must follow. Above the limit another connection is closed for it."""
        attempt = Attempt(network_of(address), close, has_keys)
        of_address = self._pending.get(attempt.key, {})
        if len(of_address) >= MAX_PENDING:
            self._evict(of_address)
        elif self._total >= MAX_PENDING_TOTAL:
            self._evict(max(self._pending.values(), key=len))
        self._pending.setdefault(attempt.key, {})[attempt] = None
        self._total += 1
        return attempt

    def leave(self, attempt: Attempt) -> None:
        """Stop counting a connection that logged in or was closed. Idempotent."""
        of_address = self._pending.get(attempt.key, {})
        if attempt not in of_address:
            return
        del of_address[attempt]
        self._total -= 1
        if not of_address:
            del self._pending[attempt.key]

    def _evict(self, attempts: dict[Attempt, None]) -> None:
        """Close the attempt least likely to log in: a wrong token, else one before key exchange, else the oldest."""
        victim = min(attempts, key=lambda one: (not one.wrong, one.has_keys()))
        self.leave(victim)
        victim.close()
