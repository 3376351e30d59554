"""Spending caps: what a tenant or one of its builders may cost in a calendar month, and when that will be reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal

from builderd.domain.months import next_month
from builderd.domain.prices import SECONDS_PER_HOUR, cents

#: From this share of a cap on, whoever pays is told.
WARNING_SHARE = Decimal("0.8")


@dataclass(frozen=True, slots=True)
class Cap:
    """``monthly`` in the currency of the prices; ``of_tenant``: of all builders of a tenant together."""

    monthly: Decimal
    of_tenant: bool

    @property
    def warning(self) -> Decimal:
        """The amount from which on whoever pays is told."""
        return self.monthly * WARNING_SHARE


@dataclass(frozen=True, slots=True)
class Spent:
    """What the present month cost so far, and what an hour costs from now on, both exact."""

    money: Decimal
    hourly_rate: Decimal

    def reaches(self, amount: Decimal, now: datetime) -> datetime | None:
        """When so much will have been spent if all goes on so; None when not within the present month."""
        if self.money >= amount:
            return now
        if self.hourly_rate <= 0:
            return None
        # Divided last: a quotient of 28 digits that is multiplied again may come out above a whole number.
        seconds = (amount - self.money) * SECONDS_PER_HOUR / self.hourly_rate
        if seconds > (next_month(now) - now).total_seconds():
            return None
        # Rounded up, so that it is reached then, and not a moment later.
        at = now + timedelta(microseconds=int((seconds * 1_000_000).to_integral_value(ROUND_CEILING)))
        return at if at < next_month(now) else None


@dataclass(frozen=True, slots=True)
class Account:
    """One cap, what was spent under it, and whether it was warned of in this month."""

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
        """When its warning or its end is reached at this rate, else the beginning of the next month."""
        amounts = [] if self.is_reached else [self.cap.monthly]
        if not self.warned:
            amounts.append(self.cap.warning)
        due = [at for amount in amounts if (at := self.spent.reaches(amount, now))]
        return min(due, default=next_month(now))


def lowest(*amounts: Decimal | None) -> Decimal | None:
    """The lowest of those that there are."""
    return min((amount for amount in amounts if amount is not None), default=None)


def name(cap: Cap, currency: str) -> str:
    """``spending cap of 5.00 EUR``"""
    return f"spending cap of {cents(cap.monthly)} {currency}"


def cap_message(cap: Cap, currency: str) -> str:
    """Why a builder was stopped."""
    return f"{name(cap, currency)} reached"


def tightest(accounts: Iterable[Account]) -> Account | None:
    """Of those that are reached, the one with the lowest cap."""
    return min((one for one in accounts if one.is_reached), key=lambda one: one.cap.monthly, default=None)
