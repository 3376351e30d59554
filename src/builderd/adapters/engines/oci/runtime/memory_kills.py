"""Kills by the kernel for memory: at the sandbox's own limit, or because the host had no memory left."""

from __future__ import annotations

from builderd.adapters.engines.oci.runtime.cgroups import Cgroups
from builderd.adapters.engines.oci.runtime.records import Records
from builderd.domain.sandboxes import EndCause


def oom_cause(records: Records, cgroups: Cgroups, name: str) -> EndCause | None:
    """Return why the kernel killed a process of the sandbox for memory, None when it killed none.

    The shim sees kills of both kinds and notes them alike, so the control group decides.
    """
    # Asked first: usually there are none, and a command asks it before it begins.
    kills = cgroups.oom_kills(name)
    if records.saw_host_oom(name) or (kills and cgroups.host_oom_kills(name)):
        return EndCause.HOST_OUT_OF_MEMORY
    if kills or records.saw_oom(name):
        return EndCause.OUT_OF_MEMORY
    return None
