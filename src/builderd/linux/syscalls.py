"""Linux system calls that Python does not wrap, for x86-64 and arm64. Standard library only.

Numbers: include/uapi/asm-generic/unistd.h (the calls since 2019 have one number on all architectures).
Flags: include/uapi/linux/mount.h, openat2.h and sched.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

#: The process's C library; errors are in ``ctypes.get_errno()``. The only one of the package.
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

#: RESOLVE_NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS and BENEATH (linux/openat2.h).
_RESOLVE = 1 | 2 | 4 | 8
#: The kernel gives up when something was renamed meanwhile.
_RESOLVE_TRIES = 100

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8
_MOUNT_ATTR_IDMAP = 0x10_0000

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def check(result: int, action: str) -> int:
    """Return the result of a call of ``libc``. Raises ``OSError`` with the action for a negative one."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), action)
    return result


def unshare(flags: int, action: str = "unshare") -> None:
    """Leave the namespaces of these ``CLONE_NEW…`` flags for new ones."""
    check(libc.unshare(flags), action)


def setns(namespace: int, flags: int) -> None:
    """Enter the namespace behind this descriptor, or those of these flags of the process behind a pidfd."""
    check(libc.setns(namespace, flags), "setns")


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """Mount a file system (mount(2))."""
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None)
    check(libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None), f"mount {kind or source} on {target}")


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    """Unmount a file system (umount2(2))."""
    check(libc.umount2(target.encode(), flags), f"unmount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make a mount the root, and mount the old root on ``put_old`` (pivot_root(2))."""
    check(libc.pivot_root(new_root.encode(), put_old.encode()), f"enter the root {new_root}")


def set_mount_attributes(path: str, attributes: int) -> None:
    """Set ``MOUNT_ATTR_…`` of the mount at a path (mount_setattr(2))."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    size = ctypes.c_size_t(len(wanted))
    result = libc.syscall(_SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), 0, wanted, size)
    check(result, f"set attributes of {path}")


def bind(
    source: str, target: str, attributes: int, user_namespace: int | None = None, *, recursive: bool = False
) -> None:
    """Bind a directory or file with ``MOUNT_ATTR_…`` of its own, idmapped by a user namespace where one is given.

    ``recursive`` binds the mounts below it, too. open_tree(2), mount_setattr(2) and move_mount(2): the attributes are
    set before anything can see the mount.
    """
    below = _AT_RECURSIVE if recursive else 0
    if user_namespace is not None:
        attributes |= _MOUNT_ATTR_IDMAP
    wanted = struct.pack("QQQQ", attributes, 0, 0, user_namespace or 0)
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | below
    tree = check(libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, source.encode(), flags), f"open {source}")
    try:
        size = ctypes.c_size_t(len(wanted))
        result = libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | below, wanted, size)
        check(result, f"set attributes of {source}")
        result = libc.syscall(_SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)
        check(result, f"bind on {target}")
    finally:
        os.close(tree)


def sync_file_system(descriptor: int) -> None:
    """Write out the whole file system that this file or folder lies on (syncfs(2))."""
    check(libc.syncfs(descriptor), "syncfs")


def die_with_parent(signal: int) -> None:
    """Ask the kernel for this signal when the parent thread ends (PR_SET_PDEATHSIG)."""
    check(libc.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl")


def forbid_new_privileges() -> None:
    """Let no program that this process starts gain privileges, such as by a setuid bit (PR_SET_NO_NEW_PRIVS)."""
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def forbid_tracing() -> None:
    """Let no process without a capability of the host's read this one's memory, files or program (PR_SET_DUMPABLE)."""
    check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "forbid tracing")


def open_beneath(folder: int, path: str, flags: int) -> int:
    """Open a path below a folder, through no link and no mount (openat2(2)).

    Raises ``OSError`` with ELOOP for a link, EXDEV for a way out.
    """
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE)
    for _ in range(_RESOLVE_TRIES):
        descriptor = libc.syscall(_SYS_OPENAT2, folder, os.fsencode(path), how, ctypes.c_size_t(len(how)))
        if descriptor >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    return check(descriptor, f"open {path}")
