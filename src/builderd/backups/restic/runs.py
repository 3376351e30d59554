"""Runs of one restic command: in a sandbox with a disk, with its output parsed and its failures explained."""

from __future__ import annotations

import errno
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from builderd.backups.port import OnProgress, RepositoryDamaged, TenantRepository
from builderd.core.errors import BackupFailed, NoCapacity, helper_died
from builderd.core.ids import DiskId, TenantId
from builderd.engine.port import Tool, ToolExit, Tools

DISK, REPOSITORY, CACHE = "/disk", "/repository", "/cache"

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

    ``environment`` has settings of the back end, such as ``AWS_ACCESS_KEY_ID``; ``ssh_key`` and ``ssh_hosts`` are
    the contents of a private key and of a known_hosts file.
    """

    base: str
    environment: Mapping[str, str] = field(default_factory=dict)
    ssh_key: str = ""
    ssh_hosts: str = ""

    @property
    def is_local(self) -> bool:
        return self.base.startswith("/")

    def folder(self, tenant: TenantId) -> Path:
        """Return the folder of a tenant's local repository."""
        return Path(self.base) / tenant

    def url(self, tenant: TenantId) -> str:
        """Return the repository's URL, or its path in the sandbox of restic."""
        return REPOSITORY if self.is_local else f"{self.base.rstrip('/')}/{tenant}"


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

    ``disk`` is what a run sees, and ``writable`` and ``reads_all`` how: see ``engine.port.Tool``.
    """

    def __init__(
        self,
        context: ResticContext,
        repository: TenantRepository,
        *,
        disk: DiskId | None = None,
        writable: bool = False,
        reads_all: bool = False,
        on_progress: OnProgress | None = None,
        on_message: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._context = context
        self._repository = repository
        self._disk, self._writable, self._reads_all = disk, writable, reads_all
        self._on_progress = on_progress
        self._on_message = on_message
        if context.location.is_local:
            self._folders = {"repository": context.location.folder(repository.tenant_id)}
        else:
            self._folders = {"cache": context.cache / repository.tenant_id}

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
            message = parse(line)
            if message.get("message_type") == "status":
                if self._on_progress is not None:
                    self._on_progress(min(float(message.get("percent_done", 0)), 1.0))
                return
            messages.append(message)
            if self._on_message is not None:
                self._on_message(message)

        location = self._context.location
        command = ["restic", "--json", *argv]
        env = {
            **location.environment,
            "RESTIC_REPOSITORY": location.url(self._repository.tenant_id),
            "RESTIC_PASSWORD": self._repository.key.hex(),
            "RESTIC_CACHE_DIR": CACHE,
            "RESTIC_PROGRESS_FPS": "1",
            "TMPDIR": "/tmp",  # noqa: S108
        }
        if location.is_local:
            command = ["restic", "--json", "--no-cache", *argv]
        elif location.base.startswith("sftp:"):
            command = ["sh", "-c", _WITH_SSH, "sh", "restic", "--json", "-o", f"sftp.args={_SSH_ARGUMENTS}", *argv]
            env |= {"BUILDERD_SSH_KEY": location.ssh_key, "BUILDERD_SSH_HOSTS": location.ssh_hosts}
        tool = Tool(
            argv=tuple(command),
            env=env,
            disk=self._disk,
            writable=self._writable,
            reads_all=self._reads_all,
            folders=self._folders,
            network=not location.is_local,
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
            lock = parse("".join(str(one["text"]) for one in shown)) if is_text else shown[-1]
            if ended.exit_code or lock.get("hostname") != self._context.name:
                return False
        ended, _ = await self._run(("unlock", "--remove-all"), QUICK)
        return ended.exit_code == 0

    def _raise_for_end(self, ended: ToolExit, messages: Sequence[Mapping[str, Any]]) -> None:
        if not ended.exit_code:
            return
        if is_full(messages, during="restore"):
            raise TargetFull(self.explain(messages), store_full=ended.store_full)
        if is_full(messages):
            # It needs some room even for a restore: its lock.
            raise NoCapacity(
                "The file system of the backups' repositories is full: its operator must free space there (df -h, "
                "builderd doctor) or move them (backup.repository). Nothing was changed or lost; then try again.",
                retry_after=RETRY_FULL,
            )
        why = self.explain(messages)
        if any(_DAMAGE.search(_error_text(one)) for one in messages):
            raise RepositoryDamaged(f"The repository of backups is damaged: {why}.")
        if any(_PARENT_LOST.search(_error_text(one)) for one in messages):
            raise ParentLost(why)
        match ended.exit_code:
            case ExitCode.NO_REPOSITORY:
                raise NoRepository(
                    f"There is no repository of backups: {why}. If it was there before, put it back (is its disk "
                    "mounted?), or remove the backups that were in it to begin a new one."
                )
            case ExitCode.LOCKED:
                raise BackupFailed(
                    f"The repository is locked by another service: {why}. Try again when that has ended."
                )
            case ExitCode.WRONG_KEY:
                raise BackupFailed(
                    "The repository does not open with its key: it was created again, or the stored key is another."
                )
            case ExitCode.INCOMPLETE:
                raise ResticFailed(f"Not every file could be read: {why}.")
            case code:
                raise ResticFailed(f"restic failed with exit code {code}: {why}.")

    def explain(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Quote what restic printed, without the secrets of this run."""
        location = self._context.location
        lines = (*location.ssh_key.splitlines(), *location.ssh_hosts.splitlines())
        return explain(messages, (self._repository.key.hex(), *location.environment.values(), *lines))


#: A user and password in a URL, which no message may show.
_USERINFO = re.compile(r"(?<=://)[^/@\s\"']+@")
_SHOWN = 3
#: ENOSPC and EDQUOT as Go prints them, at the end of an error.
_FULL = tuple(f": {os.strerror(code).lower()}" for code in (errno.ENOSPC, errno.EDQUOT))
#: Data of the repository that cannot be read. A file's name can say this too, which costs its tenant a check.
_DAMAGE = re.compile(
    "ciphertext verification failed|invalid data returned|could not be loaded; the repository could be damaged"
)
#: Data of the parent snapshot that the index does not list, since a repair found it lost.
_PARENT_LOST = re.compile("storing the file again$|is not known; the repository could be damaged")
#: Lines of ``check`` on snapshots whose data the index does not list. New backups are whole nevertheless.
_LOST = re.compile("error for tree |.* not found in (index|repository)$|The repository is damaged and must be repaired")
_SNAPSHOT = re.compile("snapshot ([0-9a-f]{8}) of ")
_LINE_LENGTH = 300
#: Shorter values are no secrets, and would mask ordinary words in messages.
_SECRET_LENGTH = 6


def parse(line: str) -> Mapping[str, Any]:
    """Parse the JSON object of a line; any other line becomes ``{"text": line}``."""
    try:
        found = json.loads(line)
    except ValueError:
        return {"text": line}
    return found if isinstance(found, dict) else {"text": line}


def is_full(messages: Iterable[Mapping[str, Any]], *, during: str = "") -> bool:
    """Return True if an error says that there was no room: for a file that was restored, or in the repository.

    ``during`` is "restore" for the files, whose errors name restic's work; empty for the repository, whose error ends
    restic. An error's last words are the kernel's; names of files, which may say anything, stand before them.
    """
    kind = "error" if during else "exit_error"
    return any(
        one.get("message_type") == kind and one.get("during", "") == during and _error_text(one).lower().endswith(_FULL)
        for one in messages
    )


def needs_repair(message: Mapping[str, Any]) -> bool:
    """Return True if a message of ``check`` tells of damage other than data that an earlier repair found lost."""
    match message.get("message_type"):
        case "summary":
            return bool(message.get("broken_packs") or message.get("suggest_repair_index"))
        case "error":
            return not _LOST.match(str(message.get("message", "")).strip())
        case _:
            return False


class IncompleteSnapshots:
    """Reader of the output of ``repair snapshots --dry-run``. ``found``: short ids of the snapshots that lack data.

    Names of files in it are quoted and indented.
    """

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._snapshot = ""

    def read(self, message: Mapping[str, Any]) -> None:
        line = str(message.get("text", ""))
        if begun := _SNAPSHOT.match(line):
            self._snapshot = begun[1]
        elif line.startswith("would ") and self._snapshot:
            self.found.add(self._snapshot)
            self._snapshot = ""


def explain(messages: Iterable[Mapping[str, Any]], secrets: Iterable[str] = ()) -> str:
    """Quote the last lines that restic printed about a failure, without secrets.

    If none of them is an error, quote the last lines of any kind.
    """
    printed, secrets = list(messages), list(secrets)
    errors = [text for one in printed if (text := _error_text(one))]
    errors = errors or [json.dumps(one, ensure_ascii=False) for one in printed]
    # Cut last, or a part of a secret could stand at the end.
    shown = "; ".join(dict.fromkeys(_masked(text, secrets)[:_LINE_LENGTH] for text in errors[-_SHOWN:]))
    return f'restic printed: "{shown}"' if shown else "restic printed nothing"


def _masked(text: str, secrets: Iterable[str]) -> str:
    """Return the text without secrets and unprintable characters."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SECRET_LENGTH:
            text = text.replace(secret, "…")
    return "".join(char if char.isprintable() else "?" for char in _USERINFO.sub("", text))


def _error_text(message: Mapping[str, Any]) -> str:
    match message.get("message_type"):
        case "error":
            error = message.get("error")
            detail = error.get("message", "") if isinstance(error, Mapping) else message.get("message", error)
            item = message.get("item")
            text = f"{item!r}: {detail}" if item else str(detail)
        case "exit_error":
            text = str(message.get("message", ""))
        case None:
            text = str(message.get("text", ""))
        case _:
            return ""
    return " ".join(text.split())
