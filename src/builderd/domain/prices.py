"""Prices and the ledger: cost is the sum of seconds times the rate at the time, rounded only when shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.resources import Resources

SECONDS_PER_HOUR = Decimal(3600)


class Billing(StrEnum):
    #: The sandbox runs: vCPU, memory and disk are paid.
    RUNNING = "running"
    #: The sandbox is frozen: memory and disk are paid, the vCPU as far as the prices say.
    FROZEN = "frozen"
    #: No sandbox runs, the disk is kept: disk only.
    STOPPED = "stopped"


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
        """What an hour in this billing state costs, exact."""
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


@dataclass(frozen=True, slots=True)
class Segment:
    """A span of a builder's time in one billing state at one rate; ``end`` None while it goes on."""

    tenant_id: TenantId
    builder_id: BuilderId
    billing: Billing
    start: datetime
    end: datetime | None
    hourly_rate: Decimal

    def seconds(self, now: datetime, since: datetime | None = None, until: datetime | None = None) -> Decimal:
        """The seconds of this segment inside [since, until), never negative."""
        start = max(self.start, since) if since else self.start
        end = self.end or now
        end = min(end, until) if until else end
        span = end - start
        exact = Decimal(span.days * 86400 + span.seconds) + Decimal(span.microseconds) / 1_000_000
        return max(exact, Decimal(0))


@dataclass(frozen=True, slots=True)
class Cost:
    """What is shown: the current rate with 4 digits, hours of running time and money with 2."""

    currency: str
    hourly_rate: Decimal
    runtime_hours: Decimal
    cost: Decimal


def total(
    segments: Iterable[Segment], now: datetime, since: datetime | None = None, until: datetime | None = None
) -> tuple[Decimal, Decimal]:
    """(running hours, money), both exact, of the segments inside [since, until)."""
    running = paid = Decimal(0)
    for segment in segments:
        seconds = segment.seconds(now, since, until)
        paid += seconds * segment.hourly_rate
        if segment.billing is Billing.RUNNING:
            running += seconds
    # Divided once, at the end: up to here every digit is exact.
    return running / SECONDS_PER_HOUR, paid / SECONDS_PER_HOUR


def cents(amount: Decimal) -> Decimal:
    """Rounded half up to 2 digits, as money is shown."""
    return amount.quantize(Decimal("0.01"), ROUND_HALF_UP)


def rate_digits(amount: Decimal) -> Decimal:
    """Rounded half up to 4 digits, as rates are shown."""
    return amount.quantize(Decimal("0.0001"), ROUND_HALF_UP)
