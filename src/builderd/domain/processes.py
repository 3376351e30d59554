"""Processes in an app's sandbox next to the app: commands, terminals, SSH sessions."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

from builderd.domain.versions import text_error

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
