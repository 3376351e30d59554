"""Joining a running sandbox with one more program, by the program of ``join.c``. Standard library only."""

from __future__ import annotations

import binascii
import contextlib
import errno
import os
import signal
from collections.abc import Sequence

#: Descriptors of a request, in this order: the program's three streams, its report, its document.
STREAMS = 3
#: Byte of the report just before the program is executed; what follows it, or comes in its place, is a fault.
READY = b"+"
#: Exit status of a child that failed before it could execute its program.
FAILED = 127
#: Signals that Python ignores; the launcher has the defaults of all others.
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
#: All that the compiled program is made of, beside this file.
_SOURCES = ("join.c", "start.c", "join.h")
#: Faults of starting any program, which pass.
PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR})


class NoJoiner(OSError):
    """The joining program cannot be executed: it is gone, or its file system forbids it."""


def sources_suffix() -> str:
    """Return the end of the name of a program that was compiled of the sources on disk, whose words it knows."""
    checksum = 0
    for name in _SOURCES:
        with open(os.path.join(os.path.dirname(__file__), name), "rb") as file:  # noqa: PTH118, PTH120, PTH123
            checksum = binascii.crc32(file.read(), checksum)
    return f"-{checksum:08x}"


def usable(program: str) -> str:
    """Return this program, or nothing if other sources than those on disk made it.

    A service that goes on during an upgrade starts launchers of the new version with the program that it had compiled.
    """
    return program if program.endswith(sources_suffix()) else ""


def start_joining(joiner: str, descriptors: Sequence[int], told: int, tell: int) -> int:
    """Execute the joining program and return its pid; it writes the started program's pid to ``tell``.

    No page of this process is copied for it (posix_spawn(3)). Closes ``told`` and ``tell`` when it cannot be executed.
    Raises ``NoJoiner`` when there is none or that is its fault, ``OSError`` when it is the machine's, which passes.
    """
    given = (*descriptors, tell)
    try:
        if not joiner:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), joiner)
        for descriptor in given:
            os.set_inheritable(descriptor, True)
        return os.posix_spawn(joiner, (joiner, *map(str, given)), {})
    except (OSError, ValueError) as error:
        os.close(told)
        os.close(tell)
        if isinstance(error, OSError) and error.filename is not None:
            kind = OSError if error.errno in PASSING else NoJoiner
            # Without the path, which is the host's.
            raise kind(error.errno, error.strerror) from error
        raise


def reap_strays(known: set[int]) -> bool:
    """Reap ended children that nobody watches: they would keep the end of their sandbox waiting.

    Return True as long as others continue.
    """
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in known:
            os.waitpid(ended.si_pid, 0)
    # Whole, since nobody but this thread takes a child from the list.
    with open(f"/proc/self/task/{os.getpid()}/children") as children:  # noqa: PTH123
        return not known.issuperset(map(int, children.read().split()))
