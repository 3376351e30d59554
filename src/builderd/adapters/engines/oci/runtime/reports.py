"""Report of a sandbox, from its record, its process and its exit file. Pure."""

from __future__ import annotations

from datetime import datetime

from builderd.adapters.engines.oci.runtime.cgroups import Cgroups
from builderd.adapters.engines.oci.runtime.records import Exit, Record, Records, moment
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import EndCause, SandboxEnd, SandboxReport, SandboxState

#: File times may be behind by one tick of the kernel, in seconds.
_CLOCK_GRAIN = 0.02


#: Signals of a machine shutdown: TERM, then KILL.
SHUTDOWN_CODES = (143, 137)
#: The heartbeat of a service ends with it, in seconds before all else does.
_BEAT = 2.0


def missing_report(sandbox: SandboxId) -> SandboxReport:
    return SandboxReport(id=sandbox, builder_id=None, state=SandboxState.ABSENT)


def make_report(
    record: Record, *, running: bool, exit_: Exit | None, oom: EndCause | None, boot: str, frozen: bool = False
) -> SandboxReport:
    """Return the report. ``exit_`` is the shim's exit file, ``oom``: why the kernel killed a process for memory."""
    sandbox, builder = SandboxId(record.id), BuilderId(record.owner)
    if record.started_at is None:
        return SandboxReport(sandbox, builder, SandboxState.PARTIAL)
    started, for_limit = moment(record.started_at), oom is EndCause.OUT_OF_MEMORY
    frozen_at, thawed_at = _moment(record.frozen_at), _moment(record.thawed_at)
    if running:
        state = SandboxState.FROZEN if frozen else SandboxState.RUNNING
        return SandboxReport(sandbox, builder, state, record.ip, started, None, frozen_at, thawed_at, for_limit)
    end = make_end(record, exit_, oom, boot)
    return SandboxReport(sandbox, builder, SandboxState.EXITED, None, started, end, frozen_at, thawed_at, for_limit)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def make_end(record: Record, exit_: Exit | None, oom: EndCause | None, boot: str) -> SandboxEnd:
    """Return the exit reason. A code of 137 may be any SIGKILL; no exit file means that the shim was killed."""
    if exit_ is None:
        cause = EndCause.HOST_RESTARTED if record.boot != boot else EndCause.MONITOR_LOST
        return SandboxEnd(EndCause.STOPPED if record.stopping_at else cause, None, _last_moment(record))
    at = moment(max(exit_.at, record.started_at or 0))
    if record.stopping_at is not None and exit_.at >= record.stopping_at - _CLOCK_GRAIN:
        return SandboxEnd(EndCause.STOPPED, exit_.code, at)
    if record.boot != boot and exit_.code in SHUTDOWN_CODES and exit_.at >= (record.seen_at or exit_.at) - _BEAT:
        return SandboxEnd(EndCause.HOST_RESTARTED, None, at)
    # An app may survive the death of one of its processes and exit normally later.
    if oom and exit_.code:
        return SandboxEnd(oom, exit_.code, at)
    return SandboxEnd(EndCause.EXITED, exit_.code, at)


def _last_moment(record: Record) -> datetime | None:
    """Return the time at which it was last known to run, for a sandbox that ended unobserved."""
    return None if record.seen_at is None else moment(max(record.seen_at, record.started_at or 0))


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
