"""Fair queueing of requests: who may start one in each iteration of the event loop.

A flood of requests that arrive together would be worked on together, and every other call would wait for all of them
at each of its steps. Here a tenant starts one request in an iteration, and so does an address without a valid token.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice

from builderd.domain.ids import TenantId, secret_hash

#: Tenants that start a request in one iteration.
TENANTS_AT_ONCE = 16
#: Addresses that start a request without a token that was valid lately, in one iteration.
ADDRESSES_AT_ONCE = 4
#: Credentials whose tenant is remembered, for nothing but its place in the queue.
MAX_KNOWN = 10_000

#: Starts a request; returns False for one that is not needed any more, whose turn the next of the same key takes.
Start = Callable[[], bool]


class FairQueue:
    """Round robin over keys: in one iteration of the event loop ``most`` of them start one request each."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: OrderedDict[str, deque[Start]] = OrderedDict()
        #: Keys that have had their turn in this iteration.
        self._served: set[str] = set()

    def enter(self, key: str, start: Start) -> None:
        """Start now, if it is the key's turn, or in a later iteration."""
        if key in self._served or key in self._waiting or len(self._served) >= self._most:
            self._waiting.setdefault(key, deque()).append(start)
        elif start():
            self._serve(key)

    def _serve(self, key: str) -> None:
        if not self._served:
            asyncio.get_running_loop().call_soon(self._next_iteration)
        self._served.add(key)

    def _next_iteration(self) -> None:
        self._served.clear()
        for key in list(islice(self._waiting, self._most)):
            queue = self._waiting.pop(key)
            if any(queue.popleft()() for _ in range(len(queue))):
                self._serve(key)
            if queue:
                self._waiting[key] = queue
        if self._waiting and not self._served:
            asyncio.get_running_loop().call_soon(self._next_iteration)


class RequestStarts:
    """Starts of the requests of one listener: by tenant with a credential that was valid lately, else by address."""

    def __init__(self) -> None:
        self._of_tenants = FairQueue(TENANTS_AT_ONCE)
        self._of_addresses = FairQueue(ADDRESSES_AT_ONCE)
        #: By the hash of the credential, the last ones used.
        self._known: OrderedDict[str | None, TenantId] = OrderedDict()

    def enter(self, credential: str | None, address: str, start: Start) -> None:
        """Start the request once it is its turn. ``credential``: hash of its token's or session's header."""
        tenant_id = self._known.get(credential) if credential is not None else None
        if tenant_id is not None:
            self._of_tenants.enter(tenant_id, start)
        else:
            self._of_addresses.enter(address, start)

    def is_known(self, credential: str | None) -> bool:
        """Return whether it was valid lately."""
        return credential in self._known

    def learn(self, credential: str, tenant_id: TenantId) -> None:
        """Remember whose valid credential this is."""
        self._known[credential] = tenant_id
        self._known.move_to_end(credential)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def forget(self, credential: str) -> None:
        """Forget a credential that is not valid any more: its requests take no more turns of the tenant."""
        self._known.pop(credential, None)


def credential_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the hash of the header that presents a token or a session; None without one. Names are in lower case."""
    found = dict(headers)
    value = (found.get(b"authorization") or found.get(b"cookie") or b"").strip()
    return secret_hash(value.decode("latin-1")) if value else None
