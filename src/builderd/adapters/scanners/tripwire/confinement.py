"""Confinement: how the scanner's processes are kept from everything but the files that they are to read.

A process of the scanner sees a root of its own (programs read-only, nothing else of the host), has no network, no
privilege and an unprivileged user, and may make no call that leads out. Works as root and, by a user namespace,
as any other user. Needs nothing but the standard library and ``linux.syscalls``.

Numbers of system calls: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from builderd.linux.syscalls import libc

NOBODY = 65534
#: Where the root is put together; exists everywhere, and nothing that is bound lies in it.
BUILD = "/sys"
#: A folder in memory for the files of one review.
WORK = "/work"
WORK_BYTES = 96 << 20
MAX_PROCESSES, MAX_DESCRIPTORS = 64, 256

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
_NAMESPACES = 0x7E02_0000

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_SIGKILL = 9
_CAP_VERSION_3 = 0x2008_0522


@dataclass(frozen=True, slots=True)
class Bind:
    """``source`` on the host is seen at ``target``, read-only."""

    source: str
    target: str


def confine(binds: Sequence[Bind]) -> int:
    """Leave the host for a root with these in it, as an unprivileged user without network.

    The caller keeps what it needs to make further namespaces. Answers a descriptor of the host's ``/proc``, for
    ``new_review`` alone. Raises ``OSError`` that says what could not be done.
    """
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.geteuid() == 0:
        _unshare(CLONE_NEWNS, "a mount namespace")
        _enter_root(binds)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    else:
        _new_user(proc, CLONE_NEWNS)
        _enter_root(binds)
    _new_user(proc, CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    return proc


def new_review(proc: int) -> None:
    """Namespaces of its own for one review, and a folder in memory. What is forked next is the first in there."""
    _write(proc, "self/oom_score_adj", "1000")
    _new_user(proc, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    _mount("tmpfs", WORK, "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, f"size={WORK_BYTES},mode=700")


def lock_down(memory_bytes: int, cpu_seconds: int) -> None:
    """Give up everything that is not needed to read files and to start a program of the root."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        # Of each process; what is only reserved, as Node.js does with terabytes, does not count.
        resource.RLIMIT_DATA: memory_bytes,
        resource.RLIMIT_NPROC: MAX_PROCESSES,
        resource.RLIMIT_NOFILE: MAX_DESCRIPTORS,
        resource.RLIMIT_FSIZE: WORK_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        # Past the hard limit of CPU time comes SIGKILL, as for lack of memory: SIGXCPU before it says which it was.
        resource.setrlimit(kind, (limit, limit + 2 if kind == resource.RLIMIT_CPU else limit))
    _drop_capabilities()
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # Before the filter, which makes it final: a process that outlives its review would block all others.
    die_with_parent()
    _filter_calls()


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _check(libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "the signal at the parent's end")


# The root


def _enter_root(binds: Sequence[Bind]) -> None:
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", BUILD, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for folder in (WORK, "/dev"):
        Path(BUILD + folder).mkdir()
    for bind in (*_system(), *binds):
        _bind(bind, _RDONLY | _NOSUID | _NODEV)
    for device in ("/dev/null", "/dev/urandom"):
        _bind(Bind(device, device), _NOSUID | _NOEXEC)
    os.chdir(BUILD)
    _check(libc.pivot_root(b".", b"."), "entering the root")
    _check(libc.umount2(b".", _MNT_DETACH), "leaving the host's root")
    os.chdir("/")
    _set_attributes("/", _RDONLY | _NOSUID | _NODEV, 0)


def _system() -> Iterable[Bind]:
    """Programs and libraries; where these are links into /usr, the same links."""
    yield Bind("/usr", "/usr")
    for name in ("/bin", "/lib", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            Path(BUILD + name).symlink_to(path.readlink())
        elif path.is_dir():
            yield Bind(name, name)


def _bind(bind: Bind, attributes: int) -> None:
    target = Path(BUILD + bind.target)
    if Path(bind.source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(bind.source, str(target), None, _MS_BIND | _MS_REC)
    _set_attributes(str(target), attributes, _AT_RECURSIVE)


def _set_attributes(path: str, attributes: int, flags: int) -> None:
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    size = ctypes.c_size_t(len(wanted))
    result = libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, wanted, size)
    _check(result, f"attributes of {path}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags))
    _check(libc.mount(*arguments, data.encode() or None), f"mounting {source} on {target}")


# Who we are


def _new_user(proc: int, flags: int) -> None:
    """Enter a user namespace that maps only the present user and group."""
    uid, gid = os.geteuid(), os.getegid()
    # What changed its user belongs to root in /proc, and could not write its own maps.
    _check(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")
    _unshare(CLONE_NEWUSER | flags, "a user namespace (see user.max_user_namespaces)")
    _check(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")
    _write(proc, "self/setgroups", "deny")
    _write(proc, "self/gid_map", f"{gid} {gid} 1")
    _write(proc, "self/uid_map", f"{uid} {uid} 1")


def _write(proc: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _drop_capabilities() -> None:
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the kernel knows no more
    header, data = struct.pack("Ii", _CAP_VERSION_3, 0), bytes(24)
    _check(libc.capset(header, data), "giving up capabilities")


def _unshare(flags: int, what: str) -> None:
    _check(libc.unshare(flags), f"making {what}")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


# The filter of system calls (seccomp(2)), in classic BPF

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _UNKNOWN = 0x7FFF_0000, 0x8000_0000, 0x0005_0001, 0x0005_0026
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x4000_0000
_CLONE3 = 435

#: Sockets, other processes' memory, mounts, namespaces, keys, and kernel parts with a history of holes.
_EVERYWHERE = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 443, 467)
_REFUSED = {
    "x86_64": (
        *(
            41,
            42,
            49,
            50,
            101,
            154,
            155,
            161,
            163,
            165,
            166,
            167,
            168,
            169,
            172,
            173,
            175,
            176,
            179,
            246,
            248,
            249,
            250,
        ),
        *(272, 298, 303, 304, 308, 310, 311, 312, 313, 320, 321, 323),
    ),
    "aarch64": (
        *(39, 40, 41, 51, 60, 89, 97, 104, 105, 106, 117, 142, 198, 200, 201, 203, 217, 218, 219, 224, 225, 241),
        *(264, 265, 268, 270, 271, 272, 273, 280, 282, 294),
    ),
}
_AUDIT = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_CLONE = {"x86_64": 56, "aarch64": 220}
_PRCTL = {"x86_64": 157, "aarch64": 167}


def _filter_calls() -> None:
    program = make_filter(platform.machine())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0), "filtering system calls")


def make_filter(machine: str) -> bytes:
    """The program: what is refused gets EPERM, the other architecture's calls end the process."""
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER_EQUAL, 0, 1, _X32),
        (_RETURN, 0, 0, _REFUSE),
        # Its flags are behind a pointer, which a filter cannot follow: libc then falls back to clone.
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _UNKNOWN),
    ]
    for number in (*_REFUSED[machine], *_EVERYWHERE):
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    steps += [
        # The kernel takes the option for an int: what stands above its 32 bits counts for nothing.
        (_EQUAL, 0, 4, _PRCTL[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 1, _PR_SET_PDEATHSIG),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 0, 1, _NAMESPACES),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
