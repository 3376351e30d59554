"""Spending caps: monthly limits of a tenant or a builder, and the time at which they will be reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal

from builderd.domain.months import next_month
from builderd.domain.prices import SECONDS_PER_HOUR, cents

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
