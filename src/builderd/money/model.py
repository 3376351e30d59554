"""Prices, the ledger, spending caps and tables of costs, by calendar days and months in UTC.

Cost is the sum of seconds times the rate at the time, rounded only when shown.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from enum import StrEnum
from typing import NamedTuple

from builderd.core.errors import ValidationFailed
from builderd.core.ids import BuilderId, TenantId
from builderd.core.resources import Resources

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
    ``shown``: pages and the command line show money; the API has it in any case.
    """

    currency: str = "EUR"
    cpu: Decimal = Decimal("0.12")
    memory: Decimal = Decimal("0.06")
    disk: Decimal = Decimal("0.0055")
    frozen_cpu: Decimal = Decimal(0)
    frozen_memory: Decimal = Decimal(1)
    shown: bool = False

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


def month_of(at: datetime) -> datetime:
    """Return the start of the month that contains ``at``."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_month(at: datetime) -> datetime:
    """Return the start of the month after ``at``."""
    first = month_of(at)
    return first.replace(year=first.year + 1, month=1) if first.month == 12 else first.replace(month=first.month + 1)


def months_between(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, datetime]]:
    """Split [start, end) at the starts of months into ``(month, from, to)``; the first part may be empty."""
    month = month_of(start)
    while True:
        following = next_month(month)
        yield month, start, min(end, following)
        if end <= following:
            return
        month = start = following


DAY = timedelta(days=1)
#: Days that one call may ask for: a leap year.
MOST_DAYS = 366


def day_of(at: datetime) -> datetime:
    """Return the start of the day that contains ``at``."""
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def days_between(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime, datetime]]:
    """Split [start, end) at midnights into ``(day, from, to)``; none is empty."""
    while start < end:
        day = day_of(start)
        # The last day of the year 9999 has no next one.
        until = end if end - day <= DAY else day + DAY
        yield day, start, until
        start = until


def span_of_days(since: datetime, until: datetime, now: datetime) -> tuple[datetime, datetime]:
    """Return the days from ``since`` up to before ``until`` that have begun. Raises ``ValidationFailed``."""
    if since >= until:
        raise ValidationFailed({"to": ["must be later than from"]})
    if until - since > MOST_DAYS * DAY:
        raise ValidationFailed({"to": [f"must be at most {MOST_DAYS} days after from"]})
    return since, max(since, min(until, day_of(now) + DAY))


#: Share of a cap that is spent when a warning is sent.
WARNING_SHARE = Decimal("0.8")


@dataclass(frozen=True, slots=True)
class Cap:
    """Monthly limit in the currency of the prices; ``of_tenant``: of all builders of a tenant together."""

    monthly: Decimal
    of_tenant: bool

    @property
    def warning(self) -> Decimal:
        """Amount at which a warning is sent."""
        return self.monthly * WARNING_SHARE


@dataclass(frozen=True, slots=True)
class Spent:
    """Spending of the present month so far, and the present rate per hour; both exact."""

    money: Decimal
    hourly_rate: Decimal

    def forecast(self, now: datetime) -> Decimal:
        """Return what the month will have cost, to the cent, if all that runs now goes on to its end."""
        seconds = seconds_between(now.replace(microsecond=0), next_month(now))
        return cents(self.money + self.hourly_rate * seconds / SECONDS_PER_HOUR)

    def reaches(self, amount: Decimal, now: datetime) -> datetime | None:
        """Return when ``amount`` will be spent at the present rate; None if not within the present month."""
        if self.money >= amount:
            return now
        if self.hourly_rate <= 0:
            return None
        # Divide last: a rounded quotient that is multiplied again may exceed the exact result.
        seconds = (amount - self.money) * SECONDS_PER_HOUR / self.hourly_rate
        if seconds > (next_month(now) - now).total_seconds():
            return None
        # Round up, so that the amount is reached at that time and not a microsecond later.
        at = now + timedelta(microseconds=int((seconds * 1_000_000).to_integral_value(ROUND_CEILING)))
        return at if at < next_month(now) else None


@dataclass(frozen=True, slots=True)
class Account:
    """One cap, the spending under it, and True in ``warned`` if a warning was sent this month."""

    cap: Cap
    spent: Spent
    warned: bool

    @property
    def is_reached(self) -> bool:
        return self.spent.money >= self.cap.monthly

    @property
    def warning_due(self) -> bool:
        return not self.warned and self.spent.money >= self.cap.warning

    def next_check(self, now: datetime) -> datetime:
        """Return when the warning or the cap is reached at this rate, at the latest the next month's beginning."""
        amounts = [] if self.is_reached else [self.cap.monthly]
        if not self.warned:
            amounts.append(self.cap.warning)
        due = [at for amount in amounts if (at := self.spent.reaches(amount, now))]
        return min(due, default=next_month(now))


def lowest(*amounts: Decimal | None) -> Decimal | None:
    """Return the lowest amount that is not None; None if all are."""
    return min((amount for amount in amounts if amount is not None), default=None)


def name(cap: Cap, currency: str) -> str:
    """``spending cap of 5.00 EUR``"""
    return f"spending cap of {cents(cap.monthly)} {currency}"


def cap_message(cap: Cap, currency: str) -> str:
    """Return the status reason of a builder that the cap stopped: ``spending cap of 5.00 EUR reached``."""
    return f"{name(cap, currency)} reached"


def tightest(accounts: Iterable[Account]) -> Account | None:
    """Return the reached account with the lowest cap, or None."""
    return min((one for one in accounts if one.is_reached), key=lambda one: one.cap.monthly, default=None)


#: Beginnings of cells that a spreadsheet takes for a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return the rows as text (RFC 4180). Text that looks like a formula is preceded by an apostrophe."""
    text = io.StringIO()
    csv.writer(text).writerows(
        [f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value for value in row]
        for row in rows
    )
    return text.getvalue()
