"""A builder's terminal on the user's own: keys go there as they are, and what is printed comes back."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from builderd.client.errors import BuilderdError

if TYPE_CHECKING:
    from builderd.client._sync.builder import Builder
    from builderd.client._sync.executions import Terminal


def attach(builder: Builder, command: str | None) -> int:
    """Run a command, by default a login shell, on the user's terminal; return its exit code."""
    columns, rows = shutil.get_terminal_size()
    with builder.terminal(command, columns=columns, rows=rows) as terminal, _raw(), _resized(terminal):
        threading.Thread(target=_type, args=(terminal,), daemon=True).start()
        while (printed := terminal.read()) is not None:
            os.write(sys.stdout.fileno(), printed)
        return terminal.exit_code or 0


def _type(terminal: Terminal) -> None:
    with suppress(OSError, BuilderdError, RuntimeError):
        while typed := os.read(sys.stdin.fileno(), 4096):
            terminal.write(typed)


@contextmanager
def _raw() -> Iterator[None]:
    """Pass keys on as they are typed, Ctrl-C too."""
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def _resized(terminal: Terminal) -> Iterator[None]:
    """Pass changes of the window's size on."""

    def changed(*_: object) -> None:
        terminal.resize(*shutil.get_terminal_size())

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
