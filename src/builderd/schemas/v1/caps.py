"""Spending caps: of the tenant, and of one builder."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from builderd.schemas.v1.envelope import Success, Time
from builderd.schemas.v1.shape import Shape, View, refusal

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
