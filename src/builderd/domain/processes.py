"""A process that is run beside an app: a command, a terminal, a session of SSH."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

from builderd.domain.versions import text_error

HOME = "/app"
#: The exit code of what was killed since its time was over, as timeout(1) has it.
TIMEOUT_EXIT_CODE = 124
#: The largest window that a terminal can have (struct winsize, ioctl_tty(2)).
MAX_WINDOW = 65_535
#: What a program is told about its terminal unless the one who looks at it says something else.
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
    """A program to run beside the app, as the app's user, with its environment and what ``env`` adds to that.

    ``cwd`` is absolute or below ``/app``. With a ``window`` it runs on a terminal of that size, without one on pipes,
    where ``joined`` sends its errors where its output goes.
    """

    argv: tuple[str, ...]
    cwd: str = HOME
    env: Mapping[str, str] = field(default_factory=dict)
    window: Window | None = None
    joined: bool = False

    @property
    def folder(self) -> str:
        """Where it begins, as an absolute path."""
        return posixpath.join(HOME, self.cwd)


def shell(command: str) -> tuple[str, ...]:
    """The program that runs a command line."""
    return ("/bin/sh", "-c", command)


#: The program of an interactive session.
LOGIN_SHELL = ("/bin/bash", "--login")


def folder_error(folder: str) -> str | None:
    """Why this cannot be the folder of a process, or None."""
    return text_error(folder, MAX_FOLDER_BYTES) if folder else "must not be empty"


def stdin_error(text: str) -> str | None:
    """Why this cannot be the input of a command, or None."""
    size = len(text.encode(errors="surrogatepass"))
    return f"must be at most {MAX_STDIN_BYTES} bytes long" if size > MAX_STDIN_BYTES else None
