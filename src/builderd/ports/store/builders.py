"""Builders in the store, and the claims on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from builderd.domain.builders import Builder, JobType, Status
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.quotas import Allocation


@dataclass(frozen=True, slots=True)
class BuilderQuery:
    """Filters and page of a list without deleted builders. ``search`` is a part of the name.

    ``sort``: ``created_at``, ``-created_at``, ``-updated_at`` or ``name``.
    """

    name: str | None = None
    search: str | None = None
    status: Status | None = None
    job_type: JobType | None = None
    sort: str = "-created_at"
    page: int = 1
    per_page: int = 25


class Builders(Protocol):
    def add(self, builder: Builder) -> None:
        """Add it. Raises ``NameTaken`` (with the other's uuid) if the tenant has a live builder of that name."""

    def get(self, builder: BuilderId, *, lock: bool = False) -> Builder | None:
        """Return it. ``lock`` makes other writers of this row wait until the unit of work ends."""

    def by_name(self, tenant: TenantId, name: str) -> Builder | None:
        """Return the live builder of that name."""

    def by_host(self, host: str, *, lock: bool = False) -> Builder | None:
        """Return the live builder whose preview has this host name."""

    def by_service_token(self, service_token: str) -> Builder | None:
        """Return the live builder that this token belongs to."""

    def list(self, tenant: TenantId, query: BuilderQuery) -> tuple[Sequence[Builder], int]:
        """Return one page and the total number."""

    def of_tenant(self, tenant: TenantId, *, deleted: bool) -> Sequence[Builder]:
        """Return a tenant's builders, oldest first, with or without the deleted ones."""

    def backed_up(self) -> Sequence[Builder]:
        """Return all tenants' live builders with a backup interval."""

    def ids(self) -> Sequence[BuilderId]:
        """Return the ids of all tenants' builders that are not deleted."""

    def count_by_status(self, tenant: TenantId | None = None) -> Mapping[Status, int]:
        """Count the builders of a tenant, or of all, that are not deleted."""

    def lock_demand(self) -> None:
        """Make other units of work that reserve capacity wait until this one ends."""

    def allocated(self, tenant: TenantId | None = None) -> Allocation:
        """Return what is reserved for the live builders of a tenant, or of all."""

    def idle_candidates(self) -> Sequence[Builder]:
        """Return all tenants' builders that run, should run, and have an auto-stop interval."""

    def save(self, builder: Builder) -> None:
        """Replace the row, except its claim. Raises ``RuntimeError`` unless this unit of work added or locked it."""

    # Claims: one worker at a time reconciles a builder. Compare-and-set on owner and time.

    def claim(self, builder: BuilderId, owner: str, now: datetime, until: datetime) -> bool:
        """Take or renew the claim; return False while another owner's has not expired."""

    def holds(self, builder: BuilderId, owner: str, now: datetime) -> bool:
        """Return True if the claim is this owner's and has not expired."""

    def release(self, builder: BuilderId, owner: str, due_at: datetime | None) -> None:
        """Release the claim; the builder is due at ``due_at``, or (None) after a change."""

    def make_due(self, builder: BuilderId, at: datetime) -> None:
        """Make the builder due at this time or earlier."""

    def due(self, now: datetime, limit: int) -> Sequence[BuilderId]:
        """Return builders that are due and unclaimed, the longest due first."""
