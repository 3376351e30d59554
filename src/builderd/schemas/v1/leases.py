"""Leases: keep a builder awake during work that no request shows."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.domain.leases import MAX_REASON_BYTES, MAX_SECONDS
from builderd.domain.versions import text_error
from builderd.schemas.v1.envelope import Page, Success, Time
from builderd.schemas.v1.shape import JsonInt, Shape, View, checked_by


def _reason_error(reason: str) -> str | None:
    return text_error(reason, MAX_REASON_BYTES)


Seconds = Annotated[JsonInt, Field(ge=1, le=MAX_SECONDS)]
Reason = Annotated[str, checked_by(_reason_error), Field(json_schema_extra={"maxLength": MAX_REASON_BYTES})]


class NewLease(Shape):
    """Lease of `seconds` in which the builder is not frozen or stopped for idleness."""

    seconds: Seconds
    reason: Reason = Field(default="", description="What it is busy with, for people.")


class RenewedLease(Shape):
    """Lease renewed for `seconds` from now. Without a `reason`, the present one stays."""

    seconds: Seconds
    reason: Reason | None = None


class Lease(View):
    """Lease of a builder. ``created_by`` is the token's name, or `app` for a lease that was taken from inside."""

    id: str
    reason: str
    created_by: str
    created_at: Time
    expires_at: Time


class LeaseAnswer(Success[Lease]):
    """One lease."""


class LeasePage(Page[Lease]):
    """Unexpired leases, oldest first."""
