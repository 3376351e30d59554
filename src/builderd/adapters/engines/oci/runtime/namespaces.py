"""User namespaces for idmapped mounts, and what the launcher's children share. Standard library only."""

from __future__ import annotations

import os

from builderd.linux.syscalls import CLONE_NEWUSER, unshare

#: Ids that one namespace maps.
IDS = 65536


def user_namespace(inside: int, outside: int) -> int:
    """Return the descriptor of a user namespace that maps 65,536 ids from ``inside`` to ``outside``."""
    ready, child_ready, child_done, done = open_pipes(2)
    pid = fork_or_close(ready, child_ready, child_done, done)
    if pid == 0:
        try:
            unshare(CLONE_NEWUSER)
            os.write(child_ready, b"r")
            os.close(done)
            os.read(child_done, 1)
        finally:
            os._exit(0)
    try:
        os.close(child_ready)
        os.close(child_done)
        if not os.read(ready, 1):
            raise OSError(0, "the kernel gives no user namespace (see user.max_user_namespaces)")
        for kind in ("uid_map", "gid_map"):
            write(f"/proc/{pid}/{kind}", f"{inside} {outside} {IDS}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(done)
        os.waitpid(pid, 0)


def open_pipes(count: int) -> list[int]:
    """Return the two ends of each pipe, first the one to read from; of none, when the kernel refuses one."""
    ends: list[int] = []
    try:
        for _ in range(count):
            ends += os.pipe2(os.O_CLOEXEC)
    except OSError:
        for end in ends:
            os.close(end)
        raise
    return ends


def fork_or_close(*descriptors: int) -> int:
    """Fork; close these if the kernel refuses to, as when a limit of processes is met."""
    try:
        return os.fork()
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def write(path: str, text: str) -> None:
    """Write to a file of the kernel, which exists or is an error."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
