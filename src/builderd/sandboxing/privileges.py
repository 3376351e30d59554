"""Privileges of a process of our own, which it gives up before it reads hostile input, and its system call filter.

Numbers of system calls: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.

Imports little: the process that unpacks an archive is started for each one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from builderd.linux.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWUTS,
    check,
    die_with_parent,
    forbid_new_privileges,
    libc,
    unshare,
)

NOBODY = 65534
_SIGKILL = 9
_PR_CAPBSET_DROP = 24
_CAP_VERSION_3 = 0x2008_0522


def leave_network() -> None:
    """Enter empty namespaces of network and IPC. Needs root."""
    unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)


def become_nobody() -> None:
    """Change from root to the user and group 65534, without further groups."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def lock_down(limits: Limits) -> None:
    """Give up everything but reading open files, and programs of the root within the limits. Cannot be undone."""
    limits.apply()
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the kernel knows no more
    header, data = struct.pack("Ii", _CAP_VERSION_3, 0), bytes(24)
    check(libc.capset(header, data), "give up capabilities")
    forbid_new_privileges()
    # Before the filter, which makes it final: a process that outlives its job would block all others.
    die_with_parent(_SIGKILL)
    filter_calls()


#: Seconds between SIGXCPU, which names the reason, and SIGKILL, which does not.
_CPU_GRACE = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one process; None: as it is. It never leaves a core dump.

    ``memory`` is what it writes to, ``address_space`` also what is only reserved, as Node.js does with terabytes.
    ``processes`` counts all of its user.
    """

    cpu_seconds: int | None = None
    memory: int | None = None
    address_space: int | None = None
    file_bytes: int | None = None
    processes: int | None = None
    descriptors: int | None = None

    def apply(self) -> None:
        """Set them for this process and its children."""
        for kind, _, soft, hard in self._given():
            resource.setrlimit(kind, (soft, hard))

    def arguments(self) -> list[str]:
        """Return them as options of prlimit(1)."""
        return [f"--{name}={soft}:{hard}" for _, name, soft, hard in self._given()]

    def _given(self) -> Iterator[tuple[int, str, int, int]]:
        limits = (
            (resource.RLIMIT_CPU, "cpu", self.cpu_seconds),
            (resource.RLIMIT_DATA, "data", self.memory),
            (resource.RLIMIT_AS, "as", self.address_space),
            (resource.RLIMIT_FSIZE, "fsize", self.file_bytes),
            (resource.RLIMIT_NPROC, "nproc", self.processes),
            (resource.RLIMIT_NOFILE, "nofile", self.descriptors),
            (resource.RLIMIT_CORE, "core", 0),
        )
        for kind, name, limit in limits:
            if limit is not None:
                yield kind, name, limit, limit + _CPU_GRACE if name == "cpu" else limit


_PR_SET_PDEATHSIG, _PR_SET_SECCOMP = 1, 22
#: All CLONE_NEW… flags of clone(2).
_NAMESPACES = 0x7E02_0000

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _UNKNOWN = 0x7FFF_0000, 0x8000_0000, 0x0005_0001, 0x0005_0026
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x4000_0000
_CLONE3 = 435

#: Sockets, other processes' memory, mounts, namespaces, keys, and kernel parts with a history of holes.
_EVERYWHERE = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 443, 467)
_REFUSED = {
    "x86_64": (
        *(41, 42, 49, 50, 101, 154, 155, 161, 163, 165, 166, 167, 168, 169, 172, 173, 175, 176, 179),
        *(246, 248, 249, 250),
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


def filter_calls() -> None:
    """Refuse calls that lead out, for good. Needs ``no_new_privs`` or a capability."""
    program = make_filter(os.uname().machine)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    check(libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0), "filtering system calls")


def make_filter(machine: str) -> bytes:
    """Return the filter: what it refuses gets EPERM, calls of another architecture end the process."""
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
