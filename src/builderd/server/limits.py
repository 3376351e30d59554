"""Limits of connections and calls: a flood by one tenant or address leaves room and time for the others.

Calls wait for their turn by tenant, and by address without a token that was valid lately: requests that arrive together
would be worked on together, and every other call would wait for all of them at each of its steps. Idle connections are
closed when there are too many: first those without a valid token, of the address that has most.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from builderd.core.addresses import network_of
from builderd.core.errors import BuilderdError, NoCapacity, RateLimited
from builderd.core.ids import TenantId, secret_hash
from builderd.server.answers import failure, stamped

#: Keys of a request's connection and call in its scope's state.
CONNECTION, CALL = "connection", "call"
#: Tenants that start a call in one iteration of the event loop, and addresses that start one without a valid token.
TENANTS_AT_ONCE, ADDRESSES_AT_ONCE = 16, 4
#: Credentials whose tenant is remembered, for nothing but its turn.
MAX_KNOWN = 10_000
#: Seconds from one connection too many until idle ones are closed: those that came together have sent their request.
TRIM_SECONDS = 0.05
#: The cookie of a session, by both of its names (``web.cookies``).
_SESSION = re.compile(rb"(?:^|;)[ \t]*(?:__Host-builderd|builderd-session)=([^;]+)")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Connections, and calls in progress, at the same time."""

    #: Connections of all clients, beyond which idle ones are closed.
    total: int = 4_000
    #: Calls in progress without a valid token, of all addresses together.
    strangers: int = 3_000
    #: Connections and calls in progress of one address, without a valid token.
    address: int = 500
    #: Calls in progress with the tokens of one tenant.
    tenant: int = 1_000


#: Every sandbox has an address of its own, and needs few connections.
SANDBOX_API = ConnectionLimits(address=64)
#: All sandboxes of a member of the cluster have its address; with a valid token, a call is its tenant's.
REMOTE_SANDBOX_API = ConnectionLimits(address=1_000, tenant=128)


class Connection(Protocol):
    """A connection that can be counted."""

    @property
    def address(self) -> str:
        """Return the address of the client."""

    @property
    def is_idle(self) -> bool:
        """Return whether no request is in progress on it."""

    @property
    def is_closing(self) -> bool:
        """Return whether it is closed or about to be."""

    def abort(self) -> None:
        """Close it now."""


class Owner(NamedTuple):
    """Tenant, or network of an address without a valid token, that connections and calls count for."""

    is_tenant: bool
    name: str


class Turns:
    """Round robin over keys: in one iteration of the event loop ``most`` of them have one turn each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._is_planned = False

    async def wait(self, key: str) -> None:
        """Wait for the key's next turn."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(turn)
        self._plan()
        await turn

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._next_iteration)

    def _next_iteration(self) -> None:
        self._is_planned = False
        for key in list(islice(self._waiting, self._most)):
            queue = self._waiting.pop(key)
            while queue:
                if not (turn := queue.popleft()).done():
                    turn.set_result(None)
                    break
            if queue:
                self._waiting[key] = queue  # behind the others
        if self._waiting:
            self._plan()


class Limiter:
    """Connections and calls of the listeners that share these limits."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self._limits = limits or ConnectionLimits()
        self._tenants, self._strangers = Turns(TENANTS_AT_ONCE), Turns(ADDRESSES_AT_ONCE)
        #: Each owner's in the order of their last use.
        self._owned: dict[Owner, OrderedDict[Connection, None]] = {}
        self._owners: dict[Connection, Owner] = {}
        self._calls: Counter[Owner] = Counter()
        #: Tenants by the hash of a credential that was valid lately.
        self._known: OrderedDict[str, TenantId] = OrderedDict()
        self._is_trim_planned = False

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._owners)

    def add(self, connection: Connection) -> None:
        """Count a new connection; idle ones are closed soon where there are too many."""
        owner = Owner(False, network_of(connection.address))
        self._give(connection, owner)
        too_many = len(self) > self._limits.total or len(self._owned[owner]) > self._limits.address
        if too_many and not self._is_trim_planned:
            self._is_trim_planned = True
            asyncio.get_running_loop().call_later(TRIM_SECONDS, self._trim)

    def remove(self, connection: Connection) -> None:
        """Stop counting a connection that is closed. Idempotent."""
        owner = self._owners.pop(connection, None)
        if owner is not None:
            del self._owned[owner][connection]
            if not self._owned[owner]:
                del self._owned[owner]

    def _give(self, connection: Connection, owner: Owner) -> None:
        self.remove(connection)
        self._owners[connection] = owner
        self._owned.setdefault(owner, OrderedDict())[connection] = None

    def _trim(self) -> None:
        self._is_trim_planned = False
        for owner, own in list(self._owned.items()):
            if not owner.is_tenant:
                self._close_idle(owner, len(own) - self._limits.address)
        for owner in sorted(self._owned, key=lambda one: (one.is_tenant, -len(self._owned[one]))):
            self._close_idle(owner, len(self) - self._limits.total)

    def _close_idle(self, owner: Owner, count: int) -> None:
        """Close up to so many idle connections, the least recently used ones first."""
        idle = (one for one in self._owned[owner] if one.is_idle)
        for connection in list(islice(idle, max(count, 0))):
            self.remove(connection)
            connection.abort()

    def begin(self, connection: Connection, credential: str | None) -> Call:
        """Count a call. Raises ``RateLimited`` or ``NoCapacity`` for one too many."""
        tenant_id = self._known.get(credential) if credential is not None else None
        owner = Owner(False, network_of(connection.address)) if tenant_id is None else Owner(True, tenant_id)
        self._count(owner)
        if connection in self._owners:
            self._owned[self._owners[connection]].move_to_end(connection)
        return Call(self, connection, owner, credential)

    def _count(self, owner: Owner) -> None:
        if owner.is_tenant:
            if self._calls[owner] >= self._limits.tenant:
                message = f"{self._limits.tenant} calls with your tokens are in progress: wait until some have ended."
                raise RateLimited(message, retry_after=1)
        elif self._calls[owner] >= self._limits.address:
            raise RateLimited("Too many calls are in progress from your address: try again later.", retry_after=1)
        elif sum(count for one, count in self._calls.items() if not one.is_tenant) >= self._limits.strangers:
            raise NoCapacity("Too many calls are in progress: try again later.", retry_after=1)
        self._calls[owner] += 1

    def end(self, owner: Owner) -> None:
        """Stop counting a call."""
        self._calls[owner] -= 1
        if not self._calls[owner]:
            del self._calls[owner]

    async def turn(self, owner: Owner) -> None:
        """Wait for the owner's next turn."""
        await (self._tenants if owner.is_tenant else self._strangers).wait(owner.name)

    def move(self, call: Call, tenant_id: TenantId) -> None:
        """Count a call and its connection for the tenant of its valid token. Raises ``RateLimited``."""
        if call.credential is not None:
            self._known[call.credential] = tenant_id
            self._known.move_to_end(call.credential)
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        owner = Owner(True, tenant_id)
        if call.owner != owner:
            self._count(owner)
            self.end(call.owner)
            call.owner = owner
        if self._owners.get(call.connection, owner) != owner:
            self._give(call.connection, owner)

    def forget(self, credential: str) -> None:
        """Forget a credential that is not valid any more: its calls take no more turns of the tenant."""
        self._known.pop(credential, None)

    def tenant_of(self, credential: str) -> TenantId | None:
        """Return whose credential it is, if it was valid lately."""
        return self._known.get(credential)


@dataclass(slots=True)
class Call:
    """A call in progress. ``credential``: hash of its token or session."""

    limiter: Limiter
    connection: Connection
    owner: Owner
    credential: str | None


class LimitedCalls:
    """ASGI middleware, before all others: each call is counted, and starts when it is its turn."""

    def __init__(self, app: ASGIApp, limiter: Limiter) -> None:
        self._app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"][CONNECTION]
        try:
            call = self._limiter.begin(connection, credential_of(scope["headers"]))
        except BuilderdError as error:
            await stamped(scope, failure(error))(scope, receive, send)
            return
        scope["state"][CALL] = call
        try:
            await self._limiter.turn(call.owner)
            if not connection.is_closing:
                await self._app(scope, receive, send)
        finally:
            self._limiter.end(call.owner)


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the hash of the token or session that a request presents; None without one. Names are in lower case.

    Of several ``Authorization`` the first counts, as for ``auth``: what is remembered is what was valid.
    """
    fields = list(headers)
    scheme, _, secret = next((value for name, value in fields if name == b"authorization"), b"").partition(b" ")
    if scheme.lower() != b"bearer":
        found = _SESSION.search(b";".join(value for name, value in fields if name == b"cookie"))
        secret = found[1] if found else b""
    secret = secret.strip()
    return secret_hash(secret.decode("latin-1")) if secret else None


def count_for_tenant(request: HTTPConnection, tenant_id: TenantId) -> None:
    """Count this request, and its connection, for the tenant whose valid token it has. Raises ``RateLimited``."""
    call: Call | None = getattr(request.state, CALL, None)
    if call is not None:
        call.limiter.move(call, tenant_id)


def reject(request: HTTPConnection) -> None:
    """Forget the credential of this request, which is not valid."""
    call: Call | None = getattr(request.state, CALL, None)
    if call is not None and call.credential is not None:
        call.limiter.forget(call.credential)
