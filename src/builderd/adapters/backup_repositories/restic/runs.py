"""Runs of one restic command: in a sandbox with a disk, with its output parsed and its failures explained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from builderd.adapters.backup_repositories.restic import output
from builderd.domain.errors import BackupFailed, NoCapacity, helper_died
from builderd.domain.ids import DiskId, TenantId
from builderd.ports.backup_repository import OnProgress, RepositoryDamaged, TenantRepository
from builderd.ports.engine import Tool, ToolExit, Tools

DISK, REPOSITORY, CACHE, WORK = "/disk", "/repository", "/cache", "/work"

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


#: Seconds that a backup or a restore may take.
LONG = 12 * 3600.0
QUICK = 600.0
#: Exit status of a program that SIGKILL ended, as tini reports it.
KILLED = 137
#: The last lines of output, which explain how the command ended.
KEPT_LINES = 200
#: When a caller may try again after a full file system, in seconds.
RETRY_FULL = 60


class ExitCode(IntEnum):
    """Exit codes of restic 0.18 (https://restic.readthedocs.io, "Scripting")."""

    INCOMPLETE = 3
    NO_REPOSITORY = 10
    LOCKED = 11
    WRONG_KEY = 12


@dataclass(frozen=True, slots=True)
class ResticContext:
    """Shared context of all runs. ``name``: host name in restic's locks; ``cache``: folder for remote repositories."""

    tools: Callable[[], Tools]
    location: RepositoryLocation
    cache: Path
    name: str


class NoRepository(BackupFailed):
    """The repository does not exist: nothing was saved for this tenant yet, or it is gone."""


class ResticFailed(BackupFailed):
    """restic failed for a reason that has no exit code of its own, such as damage or a lost connection."""


class ParentLost(ResticFailed):
    """A backup met data of its parent snapshot that a repair found lost: it has to be made without a parent."""


class TargetFull(ResticFailed):
    """There was no room for a file that restic restored. ``store_full``: in the machine's store, not on its disk."""

    def __init__(self, message: str, *, store_full: bool) -> None:
        super().__init__(message)
        self.store_full = store_full


class Run:
    """Runs restic on one repository: creates a missing one, and removes locks left by a dead run of this service.

    ``disk`` is what a run sees, and ``writable`` and ``reads_all`` how: see ``ports.engine.Tool``.
    """

    def __init__(
        self,
        context: ResticContext,
        repository: TenantRepository,
        *,
        disk: DiskId | None = None,
        writable: bool = False,
        reads_all: bool = False,
        work: Path | None = None,
        on_progress: OnProgress | None = None,
        on_message: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._context = context
        self._repository = repository
        self._disk, self._writable, self._reads_all = disk, writable, reads_all
        self._on_progress = on_progress
        self._on_message = on_message
        self._folders = {} if work is None else {"work": work}
        if self._context.location.is_local:
            self._folders["repository"] = self._context.location.folder(repository.tenant_id)
        else:
            self._folders["cache"] = context.cache / repository.tenant_id

    async def __call__(
        self, *argv: str, timeout: float, creates_repository: bool = False
    ) -> Sequence[Mapping[str, Any]]:
        """Run a command and return its last JSON messages. Raises ``BackupFailed`` for any failure."""
        ended, messages = await self._run(argv, timeout)
        if ended.exit_code == ExitCode.NO_REPOSITORY and creates_repository:
            self._raise_for_end(*await self._run(("init",), QUICK))
            ended, messages = await self._run(argv, timeout)
        if ended.exit_code == ExitCode.LOCKED and await self._clear_own_locks():
            ended, messages = await self._run(argv, timeout)
        self._raise_for_end(ended, messages)
        return messages

    async def _run(self, argv: tuple[str, ...], timeout: float) -> tuple[ToolExit, Sequence[Mapping[str, Any]]]:
        messages: deque[Mapping[str, Any]] = deque(maxlen=KEPT_LINES)

        def read_line(line: str) -> None:
            message = output.parse(line)
            if message.get("message_type") == "status":
                if self._on_progress is not None:
                    self._on_progress(min(float(message.get("percent_done", 0)), 1.0))
                return
            messages.append(message)
            if self._on_message is not None:
                self._on_message(message)

        tool = Tool(
            argv=restic(self._context.location, *argv),
            env=environment(self._context.location, self._repository.tenant_id, self._repository.key),
            disk=self._disk,
            writable=self._writable,
            reads_all=self._reads_all,
            folders=self._folders,
            network=not self._context.location.is_local,
            hostname=self._context.name,
            timeout_seconds=timeout,
        )
        ended = await self._context.tools().run_tool(tool, read_line)
        if ended.timed_out or ended.out_of_memory:
            raise BackupFailed(f"restic ran out of {'time' if ended.timed_out else 'memory'}.")
        if ended.exit_code == KILLED:
            raise helper_died("restic", "was killed")
        return ended, messages

    async def _clear_own_locks(self) -> bool:
        """Remove the locks if runs of this service, which have all ended, left them. Return True if removed."""
        ended, listed = await self._run(("list", "locks", "--no-lock"), QUICK)
        if ended.exit_code:
            return False
        names = [str(one["text"]).strip() for one in listed if "text" in one]
        for name in names:
            ended, shown = await self._run(("cat", "lock", name, "--no-lock"), QUICK)
            is_text = bool(shown) and all("text" in one for one in shown)
            lock = output.parse("".join(str(one["text"]) for one in shown)) if is_text else shown[-1]
            if ended.exit_code or lock.get("hostname") != self._context.name:
                return False
        ended, _ = await self._run(("unlock", "--remove-all"), QUICK)
        return ended.exit_code == 0

    def _raise_for_end(self, ended: ToolExit, messages: Sequence[Mapping[str, Any]]) -> None:
        if not ended.exit_code:
            return
        if output.is_full(messages, during="restore"):
            raise TargetFull(self.explain(messages), store_full=ended.store_full)
        if output.is_full(messages):
            raise repository_full()
        why = self.explain(messages)
        if output.is_damaged(messages):
            raise RepositoryDamaged(f"The repository of backups is damaged: {why}.")
        if output.is_parent_lost(messages):
            raise ParentLost(why)
        _raise_for_exit_code(ended.exit_code, why)

    def explain(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Quote what restic printed, without the secrets of this run."""
        location = self._context.location
        lines = (*location.ssh_key.splitlines(), *location.ssh_hosts.splitlines())
        return output.explain(messages, (self._repository.key.hex(), *location.environment.values(), *lines))


def repository_full() -> NoCapacity:
    """Return the error of a run that had no room in the repository, which needs some even for a restore: its lock."""
    return NoCapacity(
        "The file system of the backups' repositories is full: its operator must free space there (df -h, builderd "
        "doctor) or move them (backup.repository). Nothing was changed or lost; then try again.",
        retry_after=RETRY_FULL,
    )


def _raise_for_exit_code(code: int, why: str) -> None:
    """``why`` is what restic printed. Raises ``BackupFailed`` for any exit status; it is not 0."""
    match code:
        case ExitCode.NO_REPOSITORY:
            raise NoRepository(
                f"There is no repository of backups: {why}. If it was there before, put it back (is its disk mounted?)"
                ", or remove the backups that were in it to begin a new one."
            )
        case ExitCode.LOCKED:
            raise BackupFailed(f"The repository is locked by another service: {why}. Try again when that has ended.")
        case ExitCode.WRONG_KEY:
            raise BackupFailed(
                "The repository does not open with its key: it was created again, or the stored key is another."
            )
        case ExitCode.INCOMPLETE:
            raise ResticFailed(f"Not every file could be read: {why}.")
        case _:
            raise ResticFailed(f"restic failed with exit code {code}: {why}.")
