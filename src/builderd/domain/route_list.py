"""List of open routes that each standby of a cluster keeps, and by which it leads visits itself.

It does so at all times: while the service that works confirms the list, *directly*, and while no service works.

Two tenants never meet by it. A standby read the list from the service that works, whose route led to the address then.
That service gives the address to nobody else for ``RESERVED_SECONDS`` after its route has gone, and no standby uses a
list that is older than ``LIST_SECONDS``. The next service does not know what it led to: it gives no address at all for
``FIRST_ADDRESS_AFTER`` seconds, in which each standby has read in the database that the term of its list is over.
"""

from __future__ import annotations

from dataclasses import dataclass

from builderd.domain.previews import Address

#: A list is used no longer than so many seconds after the service that works was asked for it.
LIST_SECONDS = 120.0
#: An address that an open route has led to is given to no other app for so many seconds after that. The difference is
#: for a visit that was let through just before: it dials the address for some seconds.
RESERVED_SECONDS = LIST_SECONDS + 30.0
#: What the database said of the lease is believed for so many seconds.
LEASE_SECONDS = 15.0
#: A proxy uses the list for so many seconds after it was allowed to, by a clock that nobody sets.
PROXY_SECONDS = 10.0
#: Seconds from the taking of a lease to the first address that its owner gives: a proxy may have been allowed to use an
#: earlier list ``LEASE_SECONDS`` after the lease was read, and uses it for ``PROXY_SECONDS`` more where the machine's
#: clock was set back. With some for visits as above.
FIRST_ADDRESS_AFTER = LEASE_SECONDS + PROXY_SECONDS + 5.0
#: The service that works answers a standby at once when a route is closed, else after so many seconds.
EXCHANGE_SECONDS = 0.5
#: A standby leads visits directly for no longer than so many seconds after it has asked the service that works.
DIRECT_SECONDS = 3.0
#: Its proxy does so by the machine's clock, which may be set back, and for so many seconds by one that nobody sets. Its
#: standby allows it within the same time after the question, so that both together are the time above.
DIRECT_PROXY_SECONDS = DIRECT_SECONDS / 2
#: It does so only while it has read in the database, so many seconds ago at most, that this service has the lease.
DIRECT_LEASE_SECONDS = 4.0
#: A closed route is closed for sure so many seconds after a standby that acknowledges nothing was answered last.
CLOSED_AFTER = DIRECT_SECONDS + 0.5
#: The same after another service, or another process, has worked: a standby may have asked that one at the last moment.
FIRST_CLOSE_AFTER = DIRECT_LEASE_SECONDS + CLOSED_AFTER + 0.5


@dataclass(frozen=True, slots=True)
class ListedRoute:
    """An open route. ``via``: address of the app's member in the members' network. ``public``: visits need no token."""

    host: str
    address: Address
    public: bool
    h2c: bool
    via: str

    @property
    def is_plain(self) -> bool:
        """Return True for a route whose visits a standby may serve."""
        return self.public and not self.h2c
