"""Spending: costs of all builders, deleted ones included."""

from __future__ import annotations

from datetime import date

from builderd.schemas.v1.envelope import PageMeta, Success
from builderd.schemas.v1.shape import View


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
