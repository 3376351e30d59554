"""Privileges of a process of our own, which it gives up before it reads hostile input.

Imports little: the process that unpacks an archive is started for each one.
"""

from __future__ import annotations

import os
import struct

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
from builderd.sandboxing.limits import Limits
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
