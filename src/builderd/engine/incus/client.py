"""Client of the REST API of Incus: calls, operations awaited to their end, and websockets.

The API: https://linuxcontainers.org/incus/docs/main/rest-api/. A member is reached at its unix socket, or at its
address with a client certificate; any member answers for all.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import websockets
from websockets.asyncio.client import ClientConnection, connect, unix_connect

from builderd.core.errors import BuilderdError, EngineUnavailable, NoCapacity
from builderd.core.members import MemberAway

#: Seconds without a byte after which a call is given up; a cluster without a quorum answers after some 20.
CALL_SECONDS = 60.0
#: Seconds in which an operation may end, such as the copy of a large volume to another member.
OPERATION_SECONDS = 1800
#: Of one wait for an operation, which is made again while the operation has this status code.
SLICE_SECONDS, RUNNING = 600, 103
_CONNECT_SECONDS = 5.0
#: Of the stream of events, which is silent for long: where a server vanishes, the connection alone would not tell.
PROBE_SECONDS = 10.0

#: Calls that are made at any time: they tell that the cluster answers again, and how what was begun has ended.
_ALWAYS_ASKED = ("/cluster/members", "/operations/")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class IncusOptions:
    """``socket``: the API's unix socket on this machine; ``url`` instead: ``https://host:port`` of any member.

    ``certificate`` and ``key`` are the client's, ``server_certificate`` is the one that the server must show.
    ``project``, ``network`` and its access list are made if missing; the storage ``pool`` must exist. ``recover`` is
    "wait" or "backup": of a lost member, after ``recover_after`` seconds.
    """

    socket: Path = Path("/var/lib/incus/unix.socket")
    url: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_certificate: Path | None = None
    project: str = "builderd"
    pool: str = "default"
    network: str = "builderd"
    subnet: IPv4Network = field(default_factory=lambda: IPv4Network("10.99.0.0/16"))
    recover: str = "wait"
    recover_after: float = 60.0

    @property
    def place(self) -> str:
        """Return the server as messages name it."""
        return self.url or str(self.socket)


class IncusClient:
    """Connections to one server. Belongs to one event loop; ``close`` ends them."""

    def __init__(self, options: IncusOptions) -> None:
        self._options = options
        self._tls = _tls(options)
        self.project = options.project
        #: Returns why the cluster answers nothing now, such as for want of a quorum; "" while it does.
        self.unavailable_reason: Callable[[], str] = str
        #: Locked while the project's configuration is read and written.
        self.changing_project = asyncio.Lock()
        transport = httpx.AsyncHTTPTransport(
            uds=None if options.url else str(options.socket),
            verify=self._tls or False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=30),
        )
        self._http = httpx.AsyncClient(
            transport=transport,
            base_url=options.url or "http://incus",
            timeout=httpx.Timeout(CALL_SECONDS, connect=_CONNECT_SECONDS),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str, **query: str) -> Any:
        """Return the metadata of the answer to a GET below ``/1.0``."""
        return await self._answer("GET", path, None, query)

    async def call(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """Return the metadata of the answer; of an asynchronous one the operation, once it has ended well."""
        begun = await self._answer(method, path, body, query)
        is_operation = isinstance(begun, dict) and "may_cancel" in begun and "status_code" in begun
        return await self.wait(begun, f"{method} {path}") if is_operation else begun

    async def begin(self, method: str, path: str, body: object = None, **query: str) -> Json:
        """Begin an operation and return it."""
        begun: Json = await self._answer(method, path, body, query)
        return begun

    async def wait(self, operation: Json, action: str) -> Json:
        """Wait for the end of an operation. Raises its error."""
        path, slices = f"/operations/{operation['id']}/wait", {"timeout": str(SLICE_SECONDS)}
        while True:
            done: Json = await self._answer("GET", path, None, slices, SLICE_SECONDS + CALL_SECONDS)
            # A command may run for hours: the wait for it is made anew.
            if done["status_code"] != RUNNING:
                break
        if done["status_code"] != httpx.codes.OK:
            raise error_of(done["status_code"], done.get("err") or done["status"], action)
        return done

    async def upload(self, path: str, parts: Mapping[str, Any]) -> Json:
        """POST files as multipart/form-data, and wait for the operation."""
        response = await self._send("POST", path, {}, files=parts, seconds=OPERATION_SECONDS)
        return await self.wait(_metadata(response, f"POST {path}"), f"POST {path}")

    async def file(self, instance: str, path: str) -> bytes | list[str]:
        """Return the content of a file of an instance, also of a stopped one; of a folder, the names in it."""
        action = f"/instances/{instance}/files"
        response = await self._send("GET", action, {"path": path})
        if response.headers.get("x-incus-type") == "directory":
            return list(_metadata(response, f"GET {action} {path}"))
        if response.status_code != httpx.codes.OK:
            _metadata(response, f"GET {action} {path}")
        return response.content

    async def text(self, path: str, **query: str) -> bytes:
        """Return the content of a GET that is no JSON."""
        # Compression would cost both sides more than it saves.
        response = await self._send("GET", path, query, headers={"Accept-Encoding": "identity"})
        if response.status_code != httpx.codes.OK:
            _metadata(response, f"GET {path}")
        return response.content

    async def _answer(
        self, method: str, path: str, body: object, query: Mapping[str, str], seconds: float = CALL_SECONDS
    ) -> Any:
        content = None if body is None else json.dumps(body).encode()
        response = await self._send(method, path, query, content=content, seconds=seconds)
        return _metadata(response, f"{method} {path}")

    async def _send(
        self, method: str, path: str, query: Mapping[str, str], *, seconds: float = CALL_SECONDS, **parts: Any
    ) -> httpx.Response:
        # Incus itself takes up to a minute to say that.
        if (why := self.unavailable_reason()) and not path.startswith(_ALWAYS_ASKED):
            raise EngineUnavailable(why, retry_after=2 * RETRY_SECONDS)
        timeout = httpx.Timeout(seconds, connect=_CONNECT_SECONDS)
        try:
            return await self._http.request(method, self._path(path, query), timeout=timeout, **parts)
        except (httpx.TransportError, OSError) as error:
            raise unreachable(self._options.place, error) from error

    def _path(self, path: str, query: Mapping[str, str]) -> str:
        named = {"project": self.project, **{name: value for name, value in query.items() if value}}
        return f"/1.0{quote(path)}?{urlencode(named)}"

    async def open_websocket(self, path: str, probe_seconds: float | None = None, **query: str) -> ClientConnection:
        """Open a websocket, which the caller closes. Raises ``EngineUnavailable``.

        With ``probe_seconds`` it sends a ping so often, and ends unless an answer comes within as long.
        """
        common: dict[str, Any] = {
            "max_size": None,
            "compression": None,
            "ping_interval": probe_seconds,
            "ping_timeout": probe_seconds,
            "open_timeout": CALL_SECONDS,
            "close_timeout": 1,
        }
        target = self._path(path, query)
        try:
            if self._options.url:
                url = self._options.url.replace("https://", "wss://", 1)
                return await connect(f"{url}{target}", ssl=self._tls, proxy=None, **common)
            return await unix_connect(str(self._options.socket), f"ws://incus{target}", **common)
        except (OSError, TimeoutError, websockets.WebSocketException) as error:
            raise unreachable(self._options.place, error) from error


def _tls(options: IncusOptions) -> ssl.SSLContext | None:
    """Return the TLS context of a remote server: it must show exactly the configured certificate."""
    if options.url is None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(options.server_certificate))
        # A certificate of Incus is self-signed and names no address: it is pinned instead.
        context.check_hostname = False
        context.load_cert_chain(str(options.certificate), str(options.key))
    except OSError as error:
        raise EngineUnavailable(
            f"The certificates for Incus at {options.url} cannot be read: {error}. See incus.certificate, incus.key "
            "and incus.server_certificate."
        ) from error
    return context


def _metadata(response: httpx.Response, action: str) -> Any:
    try:
        answer = response.json()
    except ValueError:
        raise error_of(response.status_code, response.text[:200], action) from None
    if answer.get("error"):
        raise error_of(answer.get("error_code", response.status_code), answer["error"], action)
    return answer["metadata"]


#: Seconds after which a call is worth another try.
RETRY_SECONDS = 5
#: Words for a cluster without a quorum, and for a member that does not answer.
_AWAY = (
    "no available cowsql leader",
    "no available dqlite leader",
    "context deadline exceeded",
    "failed to begin transaction",
    "database is locked",
    "connection refused",
    "no route to host",
    "is currently offline",
    "is offline",
    "i/o timeout",
    "missing event connection with target cluster member",
    "isn't ready yet",
)
#: Words for an app that did not end in the time that it was given: its member is there, and can kill it.
_STILL_RUNS = "failed shutting down instance"
#: Words for an instance whose last process ended while Incus looked at it.
_ENDED = "invalid pid"
_AMBIGUOUS = "more than one cluster member has a volume"
#: Words for a pool without space, and for an instance's root or a volume that has reached its limit.
NO_SPACE = "no space left on device"
_POOL_FULL = (NO_SPACE, "not enough space", "out of space")
_LIMIT_REACHED = "disk quota exceeded"
#: Seconds after which a write to a full pool is worth another try: space comes back in the background.
FULL_RETRY_SECONDS = 60


class PoolFull(NoCapacity):
    """The storage pool of a member has no space left."""


class IncusError(EngineUnavailable):
    """A call that Incus refused; ``status`` is its error code."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status


class IncusNotFound(IncusError):
    """Incus has no such object, or the instance ended while Incus looked at its first process."""


class IncusAmbiguous(IncusError):
    """Several members have a volume of this name: the call must name one."""


class IncusConflict(IncusError):
    """An object of this name or address exists, or is in use."""


def pool_full(why: str, member: str = "") -> PoolFull:
    """Return the error for a write that a storage pool has no space for, that of ``member`` where it is known."""
    where = f" on the member {member}" if member else ""
    return PoolFull(
        f"The storage pool of Incus{where} is full ({why}). Delete a builder that is not needed: stopping one frees "
        "nothing. Or its operator frees space or enlarges the pool (incus storage info). Then try again.",
        retry_after=FULL_RETRY_SECONDS,
    )


def names_full_pool(text: str) -> bool:
    """Return True if a program's words, or those of Incus, say that there is no space left."""
    words = text.lower()
    return any(part in words for part in _POOL_FULL)


def unless_full(output: bytes, what: str) -> BuilderdError:
    """Return the error for a program of the service's own that failed, by its output; ``PoolFull`` where it says so."""
    text = output.decode(errors="replace")
    return pool_full(NO_SPACE) if names_full_pool(text) else EngineUnavailable(f"{what}: {text}", retry_after=5)


def member_away(member: str) -> MemberAway:
    """Return the error for what only a member has that does not answer."""
    return MemberAway(
        f"The member {member} of the cluster does not answer: see incus cluster list.", retry_after=2 * RETRY_SECONDS
    )


def unreachable(place: str, error: BaseException) -> EngineUnavailable:
    """Return the error for a server that does not answer."""
    return EngineUnavailable(
        f"Incus does not answer at {place}: {str(error) or type(error).__name__}. Check it by: incus cluster list, or "
        "builderd doctor.",
        retry_after=RETRY_SECONDS,
    )


def error_of(status: int, text: str, action: str) -> BuilderdError:
    """Return the error for Incus's answer to ``action`` (method and path)."""
    words = text.lower()
    message = f"Incus refused {action}: {text}"
    if _STILL_RUNS in words:
        return IncusError(status, message, retry_after=RETRY_SECONDS)
    if status == 503 or any(part in words for part in _AWAY):
        return EngineUnavailable(
            f"Incus cannot work on {action} now: {text}. The cluster has no quorum, or a member is away: see "
            "incus cluster list.",
            retry_after=2 * RETRY_SECONDS,
        )
    if names_full_pool(words):
        # Without paths of the member.
        return pool_full(text.rpartition(": ")[2])
    if _LIMIT_REACHED in words:
        return NoCapacity(f"{message}. What it writes to has reached its limit.", retry_after=FULL_RETRY_SECONDS)
    if _AMBIGUOUS in words:
        return IncusAmbiguous(status, message)
    if status == 404 or words.endswith("not found") or _ENDED in words:
        return IncusNotFound(status, message)
    if status == 409 or any(part in words for part in ("already", "in use", "unique constraint")):
        return IncusConflict(status, message)
    return IncusError(status, message, retry_after=RETRY_SECONDS)
