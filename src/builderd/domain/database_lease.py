"""The lease on the database: one service at a time works on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from builderd.domain.errors import InvalidState, StoreUnavailable

#: How often the owner renews the lease, in seconds.
RENEW_INTERVAL = 5.0
#: A lease that was not renewed for so many seconds may be taken over by ``builderd serve --take-over``.
STALE_AFTER = 60.0
#: After a restart of its machine, an owner takes its lease back once it was not renewed for so many seconds: a clone
#: of the machine, which has the same ids, would renew it.
REBOOTED_AFTER = 3 * RENEW_INTERVAL


@dataclass(frozen=True, slots=True)
class Instance:
    """One service: the ``identity`` of its data directory on one host.

    ``host_id`` is derived from the machine id, ``boot_id`` names this boot of the machine. ``host_name`` and
    ``data_dir`` are for people.
    """

    host_id: str
    host_name: str
    data_dir: str
    identity: str
    boot_id: str

    @property
    def member(self) -> str:
        """16 hex characters that name the instance, over its restarts: builders carry it."""
        return hashlib.sha256(f"{self.host_id} {self.identity}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class DatabaseLease:
    """Ownership of the database. ``term`` grows with each acquisition and fences off the owner before.

    ``renewed_at`` and ``age`` (seconds since then) are by the database's clock. ``released``: the owner has ended in
    order. It stays the owner, since its builders' disks are where it is.
    """

    instance: Instance
    term: int
    renewed_at: datetime
    age: float
    released: bool = False

    def was_renewed(self, since: DatabaseLease) -> bool:
        """Return True if its owner renewed or took it after ``since`` was read."""
        return (self.term, self.renewed_at) != (since.term, since.renewed_at)


class DatabaseOwned(InvalidState):
    """Another service owns the database."""


class DatabaseLost(InvalidState):
    """The database is empty, but its service has worked before: everything that runs would be removed as leaked."""


class LeaseLost(StoreUnavailable):
    """Another service has taken the database over: this one must not write any more."""


def needed_silence(lease: DatabaseLease, instance: Instance, *, take_over: bool) -> float | None:
    """Seconds for which the lease must not have been renewed before this instance may take it; None: never."""
    owner = lease.instance
    if owner.member == instance.member:
        # The holder of the data directory's lock is its only service within one boot.
        return 0.0 if lease.released or owner.boot_id == instance.boot_id else REBOOTED_AFTER
    if not take_over:
        return None
    return 0.0 if lease.released else STALE_AFTER


def describe_owner(lease: DatabaseLease) -> str:
    """Name the owner and when it was last seen, for a message."""
    owner = lease.instance
    ended = "stopped" if lease.released else "last seen"
    return f"the service on host {owner.host_name} (data directory {owner.data_dir}, {ended} {ago(lease.age)})"


def ago(seconds: float) -> str:
    """Return an age in words, such as "5 seconds ago"."""
    if seconds < 0:
        return "just now; the database's clock was set back since"
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
