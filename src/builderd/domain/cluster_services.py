"""Services of a cluster: one owns the database and works, the others stand by to take it over."""

from __future__ import annotations

from dataclasses import dataclass

from builderd.domain.database_lease import RENEW_INTERVAL, DatabaseLease, ago

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
RENEWAL_SECONDS, WITNESS_SECONDS = 2.0, 3.0
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
