"""The lease on the database, on which one service at a time works; services that stand by, and members of a cluster."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from builderd.core.errors import EngineUnavailable, InvalidState, StoreUnavailable
from builderd.core.resources import Capacity

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


#: A standby claims the work once the lease was not renewed for so many seconds.
CLAIM_AFTER = 2 * RENEW_INTERVAL
#: The owner, while a standby may take over, ends when for so many seconds neither the database had its renewal nor the
#: cluster showed that nobody claims its work.
GIVE_UP_AFTER = 2 * RENEW_INTERVAL
#: Its previews end then, also where the owner itself was killed: an address of an app may be another tenant's later.
FENCE_AFTER = 15.0
#: A standby takes the lease so many seconds after its claim: what the owner saw before the claim has expired then, with
#: two seconds for the fence to look and two to act.
TAKE_AFTER_CLAIM = FENCE_AFTER + 4.0
#: How long the owner waits for a renewal, and then for the cluster's answer, in seconds.
RENEWAL_SECONDS, CLAIM_SECONDS = 2.0, 3.0
#: A service that announced itself within so many seconds stands by.
ALIVE_SECONDS = 3 * RENEW_INTERVAL
#: Services that were not seen for so long are forgotten, in seconds.
FORGET_AFTER = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class ClusterService:
    """A service as it announces itself. ``id`` is ``Instance.member``.

    ``disks`` identifies the cluster and the pool that keep the disks. ``vault_key`` and ``ssh_key`` are fingerprints of
    the first key of the vault and of the SSH host key, "" without one. The files are where these keys are kept, "" for
    a key in the settings.
    """

    id: str
    host_name: str
    data_dir: str
    version: str
    disks: str
    vault_key: str
    vault_key_file: str
    ssh_key: str
    ssh_key_file: str


@dataclass(frozen=True, slots=True)
class SeenService:
    """A stored announcement, ``age`` seconds old by the database's clock.

    ``known_in`` is the term of the lease in which the owner learned of it: from then on the owner's previews end before
    this service takes over.
    """

    service: ClusterService
    age: float
    known_in: int | None

    @property
    def is_alive(self) -> bool:
        return self.age <= ALIVE_SECONDS


def describe_standby(seen: SeenService, lease: DatabaseLease, owner: ClusterService | None) -> str:
    """Name a service that is not the owner, whether it would take over or why not, for a message.

    ``owner`` is the announcement of the service that works, None without one.
    """
    one = seen.service
    named = f"standby: the service on host {one.host_name} (version {one.version}, seen {ago(seen.age)})"
    if owner is not None and (reason := unfit_reason(one, owner)) is not None:
        return f"{named} does not take over: {reason}"
    if not seen.is_alive:
        return (
            f"{named} does not take over: it has ended, or its log says what keeps it from the "
            f"database, from Incus or from its keys (on {one.host_name}: systemctl status builderd)"
        )
    if seen.known_in == lease.term:
        return f"{named} takes over if the owner ends"
    return (
        f"{named} would not take over: the service that works has not noted it, which takes some seconds, and Incus's "
        f"answer to its claim"
    )


def unfit_reason(standby: ClusterService, owner: ClusterService) -> str | None:
    """Return why a service cannot continue the owner's work, with the commands that mend it; None if it can."""
    if standby.disks != owner.disks:
        return (
            f"its disks are in another place ({standby.disks}) than those of the service on host {owner.host_name} "
            f"({owner.disks}): set incus.socket, incus.project and incus.pool to the same cluster"
        )
    lacking = []
    if standby.vault_key != owner.vault_key:
        lacking.append((owner.vault_key_file, standby.vault_key_file))
    if standby.ssh_key != owner.ssh_key:
        lacking.append((owner.ssh_key_file, standby.ssh_key_file))
    if not lacking:
        return None
    commands = "; ".join(_to_copy(owner.host_name, theirs, own) for theirs, own in lacking)
    return f"its keys are not those of the service on host {owner.host_name}. Copy them: {commands}"


def _to_copy(host: str, theirs: str, own: str) -> str:
    if theirs and own:
        return f"scp -p root@{host}:{theirs} {own}"
    return f"give vault.key the key of {host}" + (f", which is in {theirs}" if theirs else "")


class MemberAway(EngineUnavailable):
    """The only member that has it does not answer. What is to be ended there can be noted, and is ended later."""


@dataclass(frozen=True, slots=True)
class MemberReport:
    """A member as last seen. ``away_since`` is when it was first seen away, None while it answers.

    ``given_up``: it is away for so long that builders there get a backup elsewhere, as the operator has chosen.
    ``evacuating``: its builders are to be moved to others. ``capacity`` is what it has, None while it is not known.
    """

    name: str
    address: str
    away_since: datetime | None = None
    given_up: bool = False
    evacuating: bool = False
    capacity: Capacity | None = None
