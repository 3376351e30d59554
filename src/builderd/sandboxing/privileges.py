"""Privileges of a process of our own, which it gives up before it reads hostile input.

Imports little: the process that unpacks an archive is started for each one.
"""

from __future__ import annotations

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
from builderd.sandboxing.seccomp import filter_calls

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
    _drop_capabilities()
    forbid_new_privileges()
    # Before the filter, which makes it final: a process that outlives its job would block all others.
    die_with_parent(_SIGKILL)
    filter_calls()


def _drop_capabilities() -> None:
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the kernel knows no more
    header, data = struct.pack("Ii", _CAP_VERSION_3, 0), bytes(24)
    check(libc.capset(header, data), "give up capabilities")


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
