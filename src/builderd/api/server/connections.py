"""Connections of one listener: how many each address and tenant may have, and which are closed when it gets tight.

A connection counts for its address until a request on it presents a valid token, and for the token's tenant from then
on: behind a forwarder all clients share one address, and a limit by address alone would lock out valid tokens. A new
connection takes the place of the least recently used idle one without a token, of the address that has most of them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import HTTPConnection

from builderd.api.server.fair_queue import RequestStarts
from builderd.domain.addresses import network_of
from builderd.domain.errors import BuilderdError, NoCapacity, RateLimited
from builderd.domain.ids import TenantId

#: Key of a request's connection in its scope's state.
STATE = "connection"
#: Refused connections that may stay open at the same time until their clients have read why.
MAX_LINGERING = 200


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Connections at the same time: of all clients, of those without a valid token, of one address, of one tenant."""

    total: int = 4_000
    #: Connections without a valid token, of all addresses together: the others are kept for valid tokens.
    strangers: int = 3_000
    address: int = 500
    tenant: int = 1_000
    #: Beyond those of an address: each has to present a token with its first request while the others are busy.
    newcomers: int = 100


#: Every sandbox has an address of its own, and needs few connections.
SANDBOX_API = ConnectionLimits(strangers=4_000, address=64, newcomers=0)
#: All sandboxes of a member of the cluster have its address; with a valid token, a connection is its tenant's.
REMOTE_SANDBOX_API = ConnectionLimits(address=1_000, tenant=128)


class Connection(Protocol):
    """A connection that can be counted."""

    @property
    def is_idle(self) -> bool:
        """Return whether no request is being answered on it: none came, or it waits for its turn to start.

        A request with a credential that was valid lately is not idle while it waits.
        """

    @property
    def presents_credential(self) -> bool:
        """Return whether a request waits on it for its turn that presents a credential, valid or not."""

    def abort(self, error: BuilderdError) -> None:
        """Close it now; a client whose request presents a credential reads the error."""


@dataclass(frozen=True, slots=True)
class _Address:
    network: str


_Owner = _Address | TenantId


class Connections:
    """Connections of one listener by owner, each owner's in the order of their last use."""

    def __init__(self, limits: ConnectionLimits | None = None) -> None:
        self._limits = limits or ConnectionLimits()
        self._owners: dict[Connection, _Owner] = {}
        self._owned: dict[_Owner, OrderedDict[Connection, None]] = {}
        self._strangers = 0
        self._refused: set[Connection] = set()
        self.starts = RequestStarts()

    def __len__(self) -> int:
        return len(self._owners)

    def admit(self, connection: Connection, address: str) -> None:
        """Count a new connection. Raises ``RateLimited`` or ``NoCapacity`` where no other can be closed for it."""
        owner = _Address(network_of(address))
        most, error = self._limits.address + self._limits.newcomers, too_many_of_address()
        if self._count(owner) >= most and not self._close_one_of(owner, error):
            raise error
        full = self._strangers >= self._limits.strangers or len(self) >= self._limits.total
        if full and not (self._close_idle(_Address) or (self._can_evict and self._close_idle(str))):
            raise _too_many()
        self._add(connection, owner)

    @property
    def _can_evict(self) -> bool:
        """Return whether another connection without a token may replace an idle one with a token."""
        return self._strangers < self._limits.strangers

    def may_start_without_credential(self, connection: Connection) -> bool:
        """Return whether a request without a credential may start: newcomers' room is for those that present one.

        Another connection of its address is closed for it, but none whose request presents a credential.
        """
        owner = self._owners.get(connection)
        if not isinstance(owner, _Address) or self._count(owner) <= self._limits.address:
            return True
        return self._close_one_of(owner, too_many_of_address(), spare_credentials=True)

    def count_for_tenant(self, connection: Connection, tenant_id: TenantId) -> None:
        """Count it for this tenant, whose valid token it has presented. Raises ``RateLimited`` for one too many."""
        if connection not in self._owners or self._owners[connection] == tenant_id:
            return
        if self._count(tenant_id) >= self._limits.tenant:
            message = f"{self._limits.tenant} connections with your tokens are open already: close some of them."
            error = RateLimited(message, retry_after=1)
            if not self._close_one_of(tenant_id, error):
                raise error
        self.forget(connection)
        self._add(connection, tenant_id)

    def touch(self, connection: Connection) -> None:
        """Mark the connection as the most recently used one of its owner."""
        if connection in self._owners:
            self._owned[self._owners[connection]].move_to_end(connection)

    def may_linger(self, connection: Connection) -> bool:
        """Return whether a refused connection may stay open until its client has read why, for a second at most."""
        if len(self._refused) < MAX_LINGERING:
            self._refused.add(connection)
        return connection in self._refused

    def forget(self, connection: Connection) -> None:
        """Stop counting a connection that is closed. Idempotent."""
        self._refused.discard(connection)
        owner = self._owners.pop(connection, None)
        if owner is None:
            return
        del self._owned[owner][connection]
        if not self._owned[owner]:
            del self._owned[owner]
        self._strangers -= isinstance(owner, _Address)

    def _add(self, connection: Connection, owner: _Owner) -> None:
        self._owners[connection] = owner
        self._owned.setdefault(owner, OrderedDict())[connection] = None
        self._strangers += isinstance(owner, _Address)

    def _count(self, owner: _Owner) -> int:
        return len(self._owned.get(owner, ()))

    def _close_idle(self, kind: type) -> bool:
        """Close an idle connection of the owner of this kind that has most; return whether there was one."""
        owners = sorted((one for one in self._owned if isinstance(one, kind)), key=self._count, reverse=True)
        return any(self._close_one_of(owner, _too_many()) for owner in owners)

    def _close_one_of(self, owner: _Owner, error: BuilderdError, *, spare_credentials: bool = False) -> bool:
        """Close an idle connection of the owner for this reason; return whether there was one."""
        idle = (one for one in self._owned.get(owner, ()) if one.is_idle)
        closed = next((one for one in idle if not (spare_credentials and one.presents_credential)), None)
        if closed is None:
            return False
        self.forget(closed)
        closed.abort(error)
        return True


def _too_many() -> NoCapacity:
    return NoCapacity("Too many connections are open: try again later.", retry_after=1)


def too_many_of_address() -> RateLimited:
    """Return the error for one connection too many of an address."""
    return RateLimited("Too many connections are open from your address: close some of them.", retry_after=1)


@dataclass(slots=True)
class CountedConnection:
    """The connection of a request, as the listener puts it into the state of the request's scope."""

    connection: Connection
    connections: Connections
    #: Hash of the request's token or session.
    credential: str | None = None


def count_for_tenant(request: HTTPConnection, tenant_id: TenantId) -> None:
    """Count the connection of this request for the tenant whose token it has. Raises ``RateLimited``."""
    counted: CountedConnection | None = getattr(request.state, STATE, None)
    if counted is not None:
        if counted.credential is not None:
            counted.connections.starts.learn(counted.credential, tenant_id)
        counted.connections.count_for_tenant(counted.connection, tenant_id)


def reject(request: HTTPConnection) -> None:
    """Forget the credential of this request, which is not valid."""
    counted: CountedConnection | None = getattr(request.state, STATE, None)
    if counted is not None and counted.credential is not None:
        counted.connections.starts.forget(counted.credential)
