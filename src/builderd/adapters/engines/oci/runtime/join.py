"""Joining a running sandbox with one more program, by the program of ``join.c``. Standard library only."""

from __future__ import annotations

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
#: Faults of starting any program, which pass.
PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR})


class NoJoiner(OSError):
    """The joining program cannot be executed: it is gone, or its file system forbids it."""


def start_joining(joiner: str, descriptors: Sequence[int], told: int, tell: int) -> int:
    """Execute the joining program and return its pid; it writes the started program's pid to ``tell``.

    No page of this process is copied for it (posix_spawn(3)). Closes ``told`` and ``tell`` when it cannot be executed.
    Raises ``NoJoiner`` when that is the program's fault, ``OSError`` when it is the machine's, which passes.
    """
    given = (*descriptors, tell)
    try:
        for descriptor in given:
            os.set_inheritable(descriptor, True)
        return os.posix_spawn(joiner, (joiner, *map(str, given)), {})
    except (OSError, ValueError) as error:
        os.close(told)
        os.close(tell)
        if isinstance(error, OSError) and error.filename:
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
