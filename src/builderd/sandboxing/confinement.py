"""Confinement of a process of our own: a root, namespaces and a user of its own.

``confine`` leaves the host for a root with programs in it (read-only, nothing else of the host), without network,
privilege or user. A process kept warm there forks again for each job, which gets ``new_job``. ``privileges.lock_down``
is last, before hostile input is read. Works as root and, by a user namespace, as any other user. Imports nothing but
the standard library and ``linux.syscalls``: the host's other files are gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from builderd.linux.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    bind,
    check,
    libc,
    mount,
    pivot_root,
    set_mount_attributes,
    unmount,
    unshare,
)
from builderd.sandboxing.privileges import become_nobody

#: Folder in which the root is put together: exists everywhere, and nothing that is bound lies in it.
BUILD = "/sys"
#: Folder in memory for the files of one job.
WORK = "/work"
WORK_BYTES = 96 << 20

_PR_SET_DUMPABLE = 4


@dataclass(frozen=True, slots=True)
class Bind:
    """``source`` on the host is seen at ``target``, read-only."""

    source: str
    target: str


def confine(binds: Sequence[Bind]) -> int:
    """Leave the host for a root with these in it, as an unprivileged user without network.

    The caller keeps the capabilities that make further namespaces. Return a descriptor of the host's ``/proc``, for
    ``new_job`` alone. Raises ``OSError`` with the action that failed as its file name.
    """
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.geteuid() == 0:
        unshare(CLONE_NEWNS)
        _enter_root(binds)
        become_nobody()
    else:
        _new_user(proc, CLONE_NEWNS)
        _enter_root(binds)
    _new_user(proc, CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    return proc


def new_job(proc: int) -> None:
    """Enter namespaces of one job, with a folder in memory. The next fork is the first process in there."""
    _write(proc, "self/oom_score_adj", "1000")
    _new_user(proc, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    mount("tmpfs", WORK, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={WORK_BYTES},mode=700")


def _enter_root(binds: Sequence[Bind]) -> None:
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", BUILD, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for folder in (WORK, "/dev"):
        Path(BUILD + folder).mkdir()
    for one in (*_system(), *binds):
        _bind(one, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
    for device in ("/dev/null", "/dev/urandom"):
        _bind(Bind(device, device), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
    os.chdir(BUILD)
    pivot_root(".", ".")
    unmount(".")
    os.chdir("/")
    set_mount_attributes("/", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)


def _system() -> Iterable[Bind]:
    """Yield programs and libraries; where these are links into /usr, make the same links."""
    yield Bind("/usr", "/usr")
    for name in ("/bin", "/lib", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            Path(BUILD + name).symlink_to(path.readlink())
        elif path.is_dir():
            yield Bind(name, name)


def _bind(one: Bind, attributes: int) -> None:
    target = Path(BUILD + one.target)
    if Path(one.source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    bind(one.source, str(target), attributes, recursive=True)


def _new_user(proc: int, flags: int) -> None:
    """Enter a user namespace that maps only the present user and group."""
    uid, gid = os.geteuid(), os.getegid()
    # What changed its user belongs to root in /proc, and could not write its own maps.
    _make_dumpable()
    unshare(CLONE_NEWUSER | flags, "make a user namespace (see user.max_user_namespaces)")
    _make_dumpable()
    _write(proc, "self/setgroups", "deny")
    _write(proc, "self/gid_map", f"{gid} {gid} 1")
    _write(proc, "self/uid_map", f"{uid} {uid} 1")


def _make_dumpable() -> None:
    check(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "make the process dumpable")


def _write(proc: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
