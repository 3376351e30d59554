"""Prices and the ledger: cost is the sum of seconds times the rate at the time, rounded only when shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum
from typing import NamedTuple

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.resources import Resources

SECONDS_PER_HOUR = Decimal(3600)
_ZERO, _MICROSECOND = Decimal(0), Decimal("0.000001")
_CENT, _RATE_DIGITS = Decimal("0.01"), Decimal("0.0001")


class Billing(StrEnum):
    #: The sandbox runs: vCPU, memory and disk are paid.
    RUNNING = "running"
    #: The sandbox is frozen: memory and disk are paid, the vCPU as far as the prices say.
    FROZEN = "frozen"
    #: No sandbox runs, the disk is kept: disk only.
    STOPPED = "stopped"
    #: A version is tried beside the one that serves, built, or looked at by QA: vCPU and memory are paid, but no disk.
    TRIAL = "trial"


@dataclass(frozen=True, slots=True)
class Prices:
    """Per hour: one vCPU, one GB of memory, one GB of disk.

    ``frozen_cpu`` and ``frozen_memory`` are the shares, from 0 to 1, of the first two that a frozen builder pays.
    """

    currency: str = "EUR"
    cpu: Decimal = Decimal("0.12")
    memory: Decimal = Decimal("0.06")
    disk: Decimal = Decimal("0.0055")
    frozen_cpu: Decimal = Decimal(0)
    frozen_memory: Decimal = Decimal(1)

    def hourly_rate(self, resources: Resources, billing: Billing) -> Decimal:
        """Return the exact price of an hour in this billing state."""
        cpu = Decimal(str(resources.cpu)) * self.cpu
        memory = Decimal(str(resources.memory)) * self.memory
        disk = Decimal(str(resources.disk)) * self.disk
        match billing:
            case Billing.RUNNING:
                return cpu + memory + disk
            case Billing.FROZEN:
                return cpu * self.frozen_cpu + memory * self.frozen_memory + disk
            case Billing.STOPPED:
                return disk
            case Billing.TRIAL:
                return cpu + memory


@dataclass(frozen=True, slots=True)
class OpenBuild:
    """A build or QA report that runs and is charged once it ends. ``seen_at`` is when it was last seen to run."""

    id: str
    tenant_id: TenantId
    builder_id: BuilderId
    started_at: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of a builder's time in one billing state at one rate; ``end`` None while it continues."""

    tenant_id: TenantId
    builder_id: BuilderId
    billing: Billing
    start: datetime
    end: datetime | None
    hourly_rate: Decimal

    def seconds(self, now: datetime, since: datetime | None = None, until: datetime | None = None) -> Decimal:
        """Return the seconds of this segment inside [since, until), never negative."""
        start = max(self.start, since) if since else self.start
        end = self.end or now
        end = min(end, until) if until else end
        return seconds_between(start, end)


@dataclass(frozen=True, slots=True)
class Sum:
    """Exact sums over segments: ``running`` in seconds, ``paid`` in seconds times the hourly rate of each.

    Division by an hour happens in the properties, so that sums lose no digit.
    """

    running: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)

    def __add__(self, other: Sum) -> Sum:
        return Sum(self.running + other.running, self.paid + other.paid)

    def __neg__(self) -> Sum:
        return Sum(-self.running, -self.paid)

    @property
    def hours(self) -> Decimal:
        """Hours of running time."""
        return self.running / SECONDS_PER_HOUR

    @property
    def money(self) -> Decimal:
        return self.paid / SECONDS_PER_HOUR


class Cost(NamedTuple):
    """Cost as shown: the current rate with 4 digits, hours of running time and money with 2."""

    currency: str
    hourly_rate: Decimal
    runtime_hours: Decimal
    cost: Decimal


def total(
    segments: Iterable[Segment], now: datetime, since: datetime | None = None, until: datetime | None = None
) -> Sum:
    """Return the sums of the segments inside [since, until)."""
    found = Sum()
    for segment in segments:
        seconds = segment.seconds(now, since, until)
        running = seconds if segment.billing is Billing.RUNNING else Decimal(0)
        found += Sum(running, seconds * segment.hourly_rate)
    return found


def seconds_between(start: datetime, end: datetime) -> Decimal:
    """Return the exact seconds from one time to another, 0 if the end comes first."""
    span = end - start
    if span.days < 0:
        return _ZERO
    return Decimal((span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds) * _MICROSECOND


def cents(amount: Decimal) -> Decimal:
    """Round half up to 2 digits, as money is shown."""
    return amount.quantize(_CENT, ROUND_HALF_UP)


def rate_digits(amount: Decimal) -> Decimal:
    """Round half up to 4 digits, as rates are shown."""
    return amount.quantize(_RATE_DIGITS, ROUND_HALF_UP)
