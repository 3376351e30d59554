"""Spending of all builders, deleted ones included, and its caps."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import AfterValidator, Field

from builderd.schemas.v1.shape import PageMeta, Shape, Success, Time, View, refusal


class Deployment(View):
    """Costs of one builder; amounts as in its ``cost``."""

    uuid: str
    name: str
    hourly_rate: float
    runtime_hours: float
    cost: float


class Spending(View):
    """Costs of all builders; ``deployments`` has one page of them, oldest first.

    ``total_cost`` is of all pages. It is rounded once, so it can differ by a cent from the sum of the rounded shares.

    ``vm_count`` is the number of builders on all pages.
    """

    currency: str
    total_cost: float
    vm_count: int
    deployments: list[Deployment]


class DaySpending(View):
    """Costs of all builders in one day (UTC). ``cost`` of the present day is what it has cost up to now."""

    day: date
    runtime_hours: float
    cost: float


class DaysSpending(View):
    """Costs of all builders by day, oldest first; days without costs are among them, days to come are not.

    ``total_cost`` is rounded once, so it can differ by cents from the sum of the rounded days.
    """

    currency: str
    total_cost: float
    days: list[DaySpending]


class DaysSpendingAnswer(Success[DaysSpending]):
    """Response with the spending of each day."""


class SpendingAnswer(Success[Spending]):
    """Response with the spending, and the page of its ``deployments``."""

    meta: PageMeta


#: In the currency of the prices.
HIGHEST = 1_000_000_000


def _in_cents(amount: float) -> float:
    if round(amount, 2) != amount:
        raise refusal("must have at most 2 digits after the point")
    return amount


Amount = Annotated[float, Field(ge=0, le=HIGHEST, allow_inf_nan=False), AfterValidator(_in_cents)]


class NewSpendingCap(Shape):
    """New cap. ``monthly`` is the most that may be spent in a calendar month (UTC); null removes it."""

    monthly: Amount | None = Field(
        description="The most that may be spent in a calendar month (UTC); null lifts it.", examples=[20.0]
    )


class SpendingCap(View):
    """Spending cap: the lower of ``monthly`` (yours) and ``operator_limit`` ``applies``.

    ``spent`` is the amount in the present month, which ends at ``resets_at``.
    """

    currency: str
    monthly: float | None
    operator_limit: float | None
    applies: float | None
    spent: float
    resets_at: Time


class SpendingCapAnswer(Success[SpendingCap]):
    """Response with a cap and the amount spent."""
