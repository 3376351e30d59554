"""The command lines and the environment of restic. Pure.

Commands, exit codes and the JSON of ``--json`` are those of restic 0.18 (https://restic.readthedocs.io, "Scripting").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builderd.domain.ids import BackupId, BuilderId, TenantId

NO_REPOSITORY, LOCKED, WRONG_KEY, INCOMPLETE = 10, 11, 12, 3

DISK, REPOSITORY, CACHE, WORK = "/disk", "/repository", "/cache", "/work"
MANIFEST = f"{WORK}/manifest"
#: Makes a backup read all files, without a parent.
FORCE = "--force"

#: Writes ssh's key and known hosts, which come in the environment, to files.
_WITH_SSH = (
    "umask 077; mkdir -p /tmp/.ssh; "
    'printf "%s\\n" "$BUILDERD_SSH_KEY" >/tmp/.ssh/id; printf "%s\\n" "$BUILDERD_SSH_HOSTS" >/tmp/.ssh/hosts; '
    'unset BUILDERD_SSH_KEY BUILDERD_SSH_HOSTS; exec "$@"'
)
_SSH_ARGUMENTS = (
    "-i /tmp/.ssh/id -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes "
    "-o UserKnownHostsFile=/tmp/.ssh/hosts -o ServerAliveInterval=15"
)


@dataclass(frozen=True, slots=True)
class RepositoryLocation:
    """The location of the repositories, one a tenant: ``base`` is a folder of this machine, or a back end of restic.

    ``environment`` holds settings of the back end, such as ``AWS_ACCESS_KEY_ID``; ``ssh_key`` and ``ssh_hosts`` are
    the contents of a private key and of a known_hosts file.
    """

    base: str
    environment: Mapping[str, str] = field(default_factory=dict)
    ssh_key: str = ""
    ssh_hosts: str = ""

    @property
    def is_local(self) -> bool:
        return self.base.startswith("/")

    @property
    def is_sftp(self) -> bool:
        return self.base.startswith("sftp:")

    def folder(self, tenant: TenantId) -> Path:
        """Return the folder of a tenant's local repository."""
        return Path(self.base) / tenant

    def url(self, tenant: TenantId) -> str:
        """Return the repository's URL, or its path in the sandbox of restic."""
        return REPOSITORY if self.is_local else f"{self.base.rstrip('/')}/{tenant}"


def environment(location: RepositoryLocation, tenant: TenantId, key: bytes) -> dict[str, str]:
    """Return restic's environment, which contains secrets."""
    ssh = {"BUILDERD_SSH_KEY": location.ssh_key, "BUILDERD_SSH_HOSTS": location.ssh_hosts} if location.is_sftp else {}
    return {
        **location.environment,
        **ssh,
        "RESTIC_REPOSITORY": location.url(tenant),
        "RESTIC_PASSWORD": key.hex(),
        "RESTIC_CACHE_DIR": CACHE,
        "RESTIC_PROGRESS_FPS": "1",
        "TMPDIR": "/tmp",  # noqa: S108
    }


def restic(location: RepositoryLocation, *arguments: str) -> tuple[str, ...]:
    """Return the command line; a local repository needs no cache."""
    options = ("--no-cache",) if location.is_local else ()
    if not location.is_sftp:
        return ("restic", "--json", *options, *arguments)
    return ("sh", "-c", _WITH_SSH, "sh", "restic", "--json", "-o", f"sftp.args={_SSH_ARGUMENTS}", *options, *arguments)


def init() -> tuple[str, ...]:
    return ("init",)


def backup(backup_id: BackupId, builder: BuilderId, facts: Mapping[str, object]) -> tuple[str, ...]:
    """Back up the disk and its manifest. The builder is the host, so its latest snapshot is the parent (or ``FORCE``).

    ``facts`` become tags of the snapshot, for a service whose database lost the backup.
    """
    tags = [backup_id, *(f"{name}={value}" for name, value in facts.items())]
    return ("backup", "--host", builder, "--group-by", "host", "--tag", ",".join(tags), DISK, MANIFEST)


def restore(snapshot: str) -> tuple[str, ...]:
    """Restore a snapshot to an empty disk; long runs of zeros become holes again."""
    return ("restore", f"{snapshot}:{DISK}", "--target", DISK, "--sparse")


def restore_manifest(snapshot: str) -> tuple[str, ...]:
    return ("restore", f"{snapshot}:{WORK}", "--target", WORK, "--include", "/manifest", "--overwrite", "always")


def snapshots() -> tuple[str, ...]:
    return ("snapshots", "--no-lock")


def forget(ids: Sequence[str]) -> tuple[str, ...]:
    return ("forget", *ids)


def prune() -> tuple[str, ...]:
    return ("prune", "--max-unused", "10%")


def check(percent: float) -> tuple[str, ...]:
    """Check the repository's structure and a random part of its data."""
    return ("check", *(("--read-data-subset", f"{percent:g}%") if percent else ()))


def repair_packs(packs: Sequence[str]) -> tuple[str, ...]:
    """Save what is readable of damaged packs to new ones, and delete them; copies go to the working directory."""
    return ("repair", "packs", *packs)


def repair_index() -> tuple[str, ...]:
    """Make the index list what the packs that exist contain."""
    return ("repair", "index")


def list_incomplete() -> tuple[str, ...]:
    """Print all snapshots, and of each whose data is missing what a repair would do to it."""
    return ("repair", "snapshots", "--dry-run")


def list_locks() -> tuple[str, ...]:
    return ("list", "locks", "--no-lock")


def show_lock(lock: str) -> tuple[str, ...]:
    return ("cat", "lock", lock, "--no-lock")


def remove_locks() -> tuple[str, ...]:
    return ("unlock", "--remove-all")
