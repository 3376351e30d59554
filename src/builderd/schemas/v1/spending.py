"""Spending: costs of all builders, deleted ones included."""

from __future__ import annotations

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


class SpendingAnswer(Success[Spending]):
    """Response with the spending, and the page of its ``deployments``."""

    meta: PageMeta
