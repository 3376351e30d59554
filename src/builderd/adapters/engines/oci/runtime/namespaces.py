"""User namespaces for idmapped mounts, and what the launcher's children share. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping

from builderd.linux.syscalls import CLONE_NEWUSER, make_ended_child

#: Ids that one namespace maps.
IDS = 65536


@contextlib.contextmanager
def user_namespaces(outside: int, owners: Iterable[int]) -> Iterator[Mapping[int, int]]:
    """Hold a user namespace for each owner on disk that mounts show as ``outside``: their descriptors by owner.

    Mounts that were made with one keep it alive afterwards.
    """
    with contextlib.ExitStack() as opened:
        maps: dict[int, int] = {}
        for owner in dict.fromkeys(owners):
            maps[owner] = user_namespace(owner, outside)
            opened.callback(os.close, maps[owner])
        yield maps


def user_namespace(inside: int, outside: int) -> int:
    """Return the descriptor of a user namespace that maps 65,536 ids from ``inside`` to ``outside``."""
    pid = make_ended_child(CLONE_NEWUSER, "make a user namespace (see user.max_user_namespaces)")
    try:
        for kind in ("uid_map", "gid_map"):
            write(f"/proc/{pid}/{kind}", f"{inside} {outside} {IDS}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, 0)


def refuse_own(namespace: int, kind: str) -> None:
    """Raise ``OSError`` when this namespace, of a sandbox's first process by its pid, is this process's own.

    The sandbox has ended then, and its pid is a process of the host by now.
    """
    own = os.stat(f"/proc/self/ns/{kind}")  # noqa: PTH116
    if os.path.samestat(os.fstat(namespace), own):
        raise OSError(errno.ESRCH, "the sandbox has ended, its pid is a process of the host")


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
