"""Processes in an app's sandbox next to the app: commands, terminals, SSH sessions."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from builderd.core.ids import BuilderId, TenantId, TokenId
from builderd.versions.model import text_error

HOME = "/app"
#: Exit code of a process that was killed by its timeout, as of timeout(1).
TIMEOUT_EXIT_CODE = 124
#: Exit code of a process that was ended by SIGKILL, as of a shell.
KILLED_EXIT_CODE = 137
#: The largest window that a terminal can have (struct winsize, ioctl_tty(2)).
MAX_WINDOW = 65_535
#: Default of the variable TERM.
TERM = "xterm-256color"
#: As a path of Linux (PATH_MAX).
MAX_FOLDER_BYTES = 4096
MAX_STDIN_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """The size of a terminal in characters."""

    columns: int = 80
    rows: int = 24


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """Program to run as the app's user, with the app's environment plus ``env``.

    ``cwd`` is absolute or below ``/app``. With a ``window`` it runs on a terminal of that size, without one on pipes,
    where ``joined`` sends its stderr to its stdout. ``outlives_service``: it continues, without its streams, when the
    service is killed; otherwise the next service kills it.
    """

    argv: tuple[str, ...]
    cwd: str = HOME
    env: Mapping[str, str] = field(default_factory=dict)
    window: Window | None = None
    joined: bool = False
    outlives_service: bool = False

    @property
    def folder(self) -> str:
        """Working directory as an absolute path."""
        return posixpath.join(HOME, self.cwd)


def shell(command: str) -> tuple[str, ...]:
    """Return the argv that runs a command line."""
    return ("/bin/sh", "-c", command)


#: The program of an interactive session.
LOGIN_SHELL = ("/bin/bash", "--login")


def folder_error(folder: str) -> str | None:
    """Return the reason to reject a working directory, or None."""
    return text_error(folder, MAX_FOLDER_BYTES) if folder else "must not be empty"


def input_error(text: str) -> str | None:
    """Return the reason to reject a job's input, which is stored, or None."""
    return text_error(text, MAX_STDIN_BYTES)


def stdin_error(text: str) -> str | None:
    """Return the reason to reject a command's input, or None."""
    size = len(text.encode(errors="surrogatepass"))
    return f"must be at most {MAX_STDIN_BYTES} bytes long" if size > MAX_STDIN_BYTES else None


MIN_MINUTES, DEFAULT_MINUTES, MAX_MINUTES = 5, 60, 7 * 24 * 60
#: Most grants of one builder that are valid at the same time.
MAX_GRANTS = 20


@dataclass(frozen=True, slots=True)
class Grant:
    """Grant to log in. ``secret_hash`` is the sha256 of its token, which is not stored; ``created_by`` the actor.

    ``token_id`` is the API token that made it, with which it ends.
    """

    id: str
    tenant_id: TenantId
    builder_id: BuilderId
    secret_hash: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    token_id: TokenId | None = None

    def is_valid(self, now: datetime) -> bool:
        """Return True if it is neither revoked nor expired."""
        return self.revoked_at is None and now < self.expires_at


@dataclass(frozen=True, slots=True)
class Gateway:
    """Address of the SSH gateway. ``host_key`` as in ``known_hosts``, ``fingerprint`` as ssh shows it (SHA256:…)."""

    host: str
    port: int
    host_key: str
    fingerprint: str

    def command(self, token: str) -> str:
        """Return the shell command of a login."""
        return f"ssh -p {self.port} {token}@{self.host}"

    @property
    def known_hosts(self) -> str:
        """Line of ``known_hosts`` that trusts this gateway."""
        return f"[{self.host}]:{self.port} {self.host_key}"
