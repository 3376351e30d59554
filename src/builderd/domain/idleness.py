"""Auto-stop and freeze: decide when an idle builder is frozen, and when it is auto-stopped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import Enum

from builderd.domain.builders import Builder, Desired, JobType, Status
from builderd.domain.leases import Lease


class IdleAction(Enum):
    FREEZE = "freeze"
    STOP = "stop"


def can_idle(builder: Builder) -> bool:
    """Return True if it may be frozen or stopped for idleness; an ``auto_stop_interval`` of 0 forbids both."""
    at_rest = builder.candidate is None and builder.handover is None and builder.settled
    runs = builder.desired is Desired.RUNNING and builder.status is Status.RUNNING
    return runs and at_rest and builder.job_type.has_preview and builder.auto_stop_interval > 0


def auto_stop_error(job_type: JobType, interval: int) -> str | None:
    """Return the reason why a builder of this type cannot have this ``auto_stop_interval``, or None."""
    if job_type is JobType.WORKER and interval > 0:
        return "must be 0 for a worker: it has no visitors, so it would be stopped as idle and nothing would wake it"
    return None


def idle_action(
    builder: Builder, leases: Sequence[Lease], now: datetime, freeze_after: timedelta | None, cpu_idle_for: timedelta
) -> IdleAction | None:
    """Decide whether an idle builder is frozen or auto-stopped; None while it is used or has a lease.

    ``cpu_idle_for`` is the time since it last used CPU. ``freeze_after`` None: never freeze.
    """
    if not can_idle(builder) or any(lease.expires_at > now for lease in leases):
        return None
    idle_for = now - idle_since(builder, leases)
    if idle_for >= timedelta(minutes=builder.auto_stop_interval):
        return IdleAction.STOP
    if freeze_after is None or builder.asleep_since is not None or min(idle_for, cpu_idle_for) < freeze_after:
        return None
    return IdleAction.FREEZE


def idle_since(builder: Builder, leases: Sequence[Lease]) -> datetime:
    """Return the time of its last use; a lease counts as use until its end."""
    return max([builder.last_active_at or builder.updated_at, *(lease.expires_at for lease in leases)])


def stop_reason(builder: Builder) -> str:
    """Reason of a stop: ``idle for 15 minutes``."""
    return f"idle for {_counted(builder.auto_stop_interval, 'minute')}"


def freeze_reason(freeze_after: timedelta) -> str:
    """Reason of a freeze: ``idle for 60 seconds``."""
    return f"idle for {_counted(freeze_after.total_seconds(), 'second')}"


def _counted(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"
