"""Fair queueing of connections and requests: whose is started in each iteration of the event loop.

A flood of requests that arrive together would be worked on together, and every other call would wait for all of them
at each of its steps. Here a tenant starts one request in an iteration, and so does an address without a valid token.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from heapq import heapify, heapreplace
from itertools import islice
from typing import Generic, TypeVar

from builderd.domain.addresses import network_of
from builderd.domain.ids import TenantId, secret_hash

T = TypeVar("T")

#: Tenants that start a request in one iteration.
TENANTS_AT_ONCE = 16
#: Addresses that start a request without a token that was valid lately, in one iteration.
ADDRESSES_AT_ONCE = 4
#: Credentials whose tenant is remembered, for nothing but its place in the queue: in all, and of one tenant.
MAX_KNOWN, MAX_KNOWN_OF_TENANT = 10_000, 100
#: The cookie of a session, by both of its names (``web.cookies``).
_SESSION = re.compile(rb"(?:^|;)[ \t]*(?:__Host-builderd|builderd-session)=([^;]+)")

#: Starts a request; returns False for one that is not needed any more.
Start = Callable[[], bool]


class FairQueue(Generic[T]):
    """Round robin over keys: in one iteration of the event loop ``most`` of them start one entry each.

    ``start`` returns False for an entry that is not needed any more, whose turn the next of the same key takes.
    """

    def __init__(self, most: int, start: Callable[[T], bool]) -> None:
        self._most = most
        self._start = start
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        #: Keys that have had their turn in this iteration.
        self._served: set[str] = set()
        self._is_planned = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def enter(self, key: str, entry: T) -> None:
        """Start now, if it is the key's turn, or in a later iteration."""
        if key in self._served or key in self._waiting or len(self._served) >= self._most:
            self._waiting.setdefault(key, deque()).append(entry)
        elif self._start(entry):
            self._served.add(key)
            self._plan()

    def remove_excess(self, most: int) -> list[T]:
        """Remove and return entries beyond ``most``: each time the oldest one of the key that has most."""
        removed = []
        for key in longest(self._waiting, len(self) - most):
            queue = self._waiting[key]
            removed.append(queue.popleft())
            if not queue:
                del self._waiting[key]
        return removed

    def _plan(self) -> None:
        if not self._is_planned:
            self._is_planned = True
            asyncio.get_running_loop().call_soon(self._next_iteration)

    def _next_iteration(self) -> None:
        self._is_planned = False
        self._served.clear()
        try:
            for key in list(islice(self._waiting, self._most)):
                self._start_next(key)
        finally:
            if self._waiting:
                self._plan()

    def _start_next(self, key: str) -> None:
        queue = self._waiting[key]
        try:
            while queue:
                if self._start(queue.popleft()):
                    self._served.add(key)
                    self._plan()
                    return
        finally:
            if queue:
                self._waiting.move_to_end(key)
            else:
                del self._waiting[key]


def longest(groups: Mapping[str, Sized], excess: int) -> Iterator[str]:
    """Yield the key of the group that is to lose an entry, ``excess`` times: each time the one that has most."""
    if excess <= 0:
        return
    sizes = [(-len(group), number, key) for number, (key, group) in enumerate(groups.items())]
    heapify(sizes)
    for _ in range(excess):
        size, number, key = sizes[0]
        yield key
        heapreplace(sizes, (size + 1, number, key))


class RequestStarts:
    """Starts of the requests of one listener: by tenant with a credential that was valid lately, else by address."""

    def __init__(self) -> None:
        self._of_tenants = FairQueue[Start](TENANTS_AT_ONCE, _call)
        self._of_addresses = FairQueue[Start](ADDRESSES_AT_ONCE, _call)
        #: By the hash of the credential, the last ones used.
        self._known: OrderedDict[str, TenantId] = OrderedDict()
        self._of_tenant: dict[TenantId, OrderedDict[str, None]] = {}

    def enter(self, credential: str | None, address: str, start: Start) -> None:
        """Start the request once it is its turn. ``credential``: hash of its token or session."""
        tenant_id = self.tenant_of(credential)
        if tenant_id is not None:
            self._of_tenants.enter(tenant_id, start)
        else:
            self._of_addresses.enter(network_of(address), start)

    def tenant_of(self, credential: str | None) -> TenantId | None:
        """Return whose credential it is, if it was valid lately."""
        return self._known.get(credential) if credential is not None else None

    def learn(self, credential: str, tenant_id: TenantId) -> None:
        """Remember whose valid credential this is. A tenant that uses many loses its own oldest."""
        self.forget(credential)
        own = self._of_tenant.get(tenant_id, ())
        if len(own) >= MAX_KNOWN_OF_TENANT:
            self.forget(next(iter(own)))
        elif len(self._known) >= MAX_KNOWN:
            self.forget(next(iter(self._known)))
        self._known[credential] = tenant_id
        self._of_tenant.setdefault(tenant_id, OrderedDict())[credential] = None

    def forget(self, credential: str) -> None:
        """Forget a credential that is not valid any more: its requests take no more turns of the tenant."""
        tenant_id = self._known.pop(credential, None)
        if tenant_id is not None:
            del self._of_tenant[tenant_id][credential]
            if not self._of_tenant[tenant_id]:
                del self._of_tenant[tenant_id]


def _call(start: Start) -> bool:
    return start()


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
