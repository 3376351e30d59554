"""States of a sandbox's threads: whether the app works, or waits for something outside of the machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

#: States in which a thread would go on if the machine let it: it runs or waits for a CPU, or waits for a disk, for
#: memory or for being thawed (proc_pid_stat(5)).
WORKING = b"RD"
#: Where a thread waits, in state D, for a child that it made by vfork(2): for as long as the child likes.
_VFORK = frozenset({"kernel_clone", "_do_fork", "wait_for_vfork_done"})
#: At most so many threads are looked at, the first ones: an app may have many, and each costs some microseconds.
MOST_THREADS = 256
#: The state stands behind the name, which has at most 64 bytes and may hold anything.
_HEAD_BYTES = 128


def any_works(threads: Sequence[str]) -> bool:
    """Return True if one of these threads works; those that have ended do not."""
    return any(_works(thread) for thread in threads[:MOST_THREADS])


def _works(thread: str) -> bool:
    state = _state(thread)
    return state in WORKING and not (state == b"D" and _place(thread) in _VFORK)


def _place(thread: str) -> str:
    """Return the kernel's function that the thread waits in; "0" where the kernel does not say."""
    try:
        return Path("/proc", thread, "wchan").read_text()
    except OSError:
        return "0"


def _state(thread: str) -> bytes:
    try:
        descriptor = os.open(f"/proc/{thread}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return b"X"
    try:
        return state_of(os.read(descriptor, _HEAD_BYTES))
    except ProcessLookupError:
        return b"X"
    finally:
        os.close(descriptor)


def state_of(stat: bytes) -> bytes:
    """Return the state in the beginning of a ``/proc/<pid>/stat``: the letter behind the last ``)``."""
    _, named, rest = stat.rpartition(b")")
    return (rest.strip()[:1] if named else b"") or b"X"
