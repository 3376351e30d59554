"""Builders in the store, and the claims on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from builderd.domain.builders import Builder, Desired, Handover, JobType, Status, StopKind, Visibility
from builderd.domain.ids import BuilderId, DiskId, TenantId
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


class RoutedBuilder(NamedTuple):
    """Fields of a builder that its route follows from, as ``domain.routes.Routed`` names them."""

    id: BuilderId
    tenant_id: TenantId
    host: str
    service_token: str
    job_type: JobType
    visibility: Visibility
    desired: Desired
    status: Status
    stop_kind: StopKind | None
    handover: Handover | None


class Builders(Protocol):
    def add(self, builder: Builder) -> None:
        """Add it. Raises ``NameTaken`` (with the other's uuid) if the tenant has a live builder of that name."""

    def get(self, builder: BuilderId, *, lock: bool = False) -> Builder | None:
        """Return it. ``lock`` makes other writers of this row wait until the unit of work ends."""

    def get_all(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, Builder]:
        """Return those of these builders that are stored, by id.

        Like every list, it leaves out those whose row cannot be decoded; a single one raises ``RecordDamaged``.
        """

    def owner_of_live(self, builder: BuilderId) -> TenantId | None:
        """Return the tenant of a live builder; of its row no other value is decoded."""

    def replace_undecodable(self, builder: BuilderId, now: datetime) -> None:
        """Overwrite values that cannot be decoded in the rows of a builder, so that it can be deleted."""

    def by_name(self, tenant: TenantId, name: str) -> Builder | None:
        """Return the live builder of that name."""

    def by_host(self, host: str, *, lock: bool = False) -> Builder | None:
        """Return the live builder whose preview has this host name."""

    def by_hosts(self, hosts: Sequence[str]) -> Mapping[str, Builder]:
        """Return the live builders whose previews have these host names, by host name."""

    def by_service_token(self, service_token: str) -> Builder | None:
        """Return the live builder that this token belongs to."""

    def of_tenant(self, tenant: TenantId, *, deleted: bool) -> Sequence[Builder]:
        """Return a tenant's builders, oldest first, with or without the deleted ones."""

    def running(self, tenant: TenantId) -> Sequence[Builder]:
        """Return a tenant's builders that should run, oldest first."""

    def capped(self, tenant: TenantId) -> Sequence[Builder]:
        """Return a tenant's live builders with a spending cap of their own, oldest first."""

    def any_capped(self, tenant: TenantId) -> bool:
        """Return True if the tenant has a live builder with a spending cap of its own."""

    def ids(self) -> Sequence[BuilderId]:
        """Return the ids of all tenants' builders that are not deleted."""

    def live_hosts(self) -> Sequence[str]:
        """Return the host names of the previews of all tenants' live builders."""

    def routed(self, hosts: Sequence[str]) -> Sequence[RoutedBuilder]:
        """Return those live builders whose previews have these host names, as far as routes follow from them."""

    def hosts(self) -> Mapping[str, BuilderId]:
        """Return the ids of all tenants' builders that are not deleted, by the host name of their preview."""

    def tenants(self) -> Sequence[TenantId]:
        """Return the tenants with a builder that is not deleted."""

    def located(self, location: str) -> Sequence[BuilderId]:
        """Return the builders that are not deleted and live on this member of the cluster."""

    def unlocated(self) -> Mapping[DiskId, BuilderId]:
        """Return the builders that are not deleted and whose member is not recorded, by their disk."""

    def restless(self) -> Sequence[BuilderId]:
        """Return the builders that are not at rest, of all tenants.

        A builder is at rest when it is stopped as it should be, without a sandbox, a candidate or a disk to remove.
        """

    def count_by_status(self, tenant: TenantId | None = None) -> Mapping[Status, int]:
        """Count the builders of a tenant, or of all, that are not deleted."""

    def lock_demand(self) -> None:
        """Make other units of work that reserve capacity wait until this one ends."""

    def allocated(self, tenant: TenantId | None = None) -> Allocation:
        """Return what is reserved for the live builders of a tenant, or of all."""

    def allocated_to_running(self, tenant: TenantId | None = None) -> Allocation:
        """Return ``allocated`` without builders and disks: of those that run alone."""

    def idle_candidates(self) -> Sequence[Builder]:
        """Return all tenants' builders that run, should run, and have an auto-stop interval."""

    def failed(self, before: datetime, limit: int) -> Sequence[BuilderId]:
        """Return builders that failed before this time, never were up, and have a disk; the longest failed first."""

    def save(self, builder: Builder) -> None:
        """Replace the row, except its claim. Raises ``RuntimeError`` unless this unit of work added or locked it."""

    # Claims: one worker at a time reconciles a builder. Compare-and-set on owner and time.

    def claim(self, builder: BuilderId, owner: str, now: datetime, until: datetime) -> bool:
        """Take the claim, or keep it; return False while another owner's has not expired."""

    def renew(self, builder: BuilderId, owner: str, now: datetime, until: datetime) -> bool:
        """Let this owner's claim hold until then; one that was released stays so.

        Return False while another owner's has not expired.
        """

    def get_held(self, builder: BuilderId, owner: str, now: datetime) -> Builder | None:
        """Return it, locked, if the claim is this owner's and has not expired; needs a unit of work that writes."""

    def release(self, builder: BuilderId, owner: str, due_at: datetime | None) -> None:
        """Release the claim; the builder is due at ``due_at``, or (None) after a change."""

    def release_all(self, owner: str, due_at: datetime) -> Sequence[BuilderId]:
        """Release all claims of this owner; their builders are due at ``due_at`` or earlier.

        Return the claims that are left, of builders that other transactions work on: each needs one of its own.
        """

    def make_due(self, builder: BuilderId, at: datetime) -> None:
        """Make the builder due at this time or earlier."""

    def make_all_due(self, builders: Sequence[BuilderId], at: datetime) -> Sequence[BuilderId]:
        """Make these builders due at this time or earlier.

        Return those that other transactions work on, and that are gone: each of these needs a transaction of its own.
        """

    def due(self, now: datetime, limit: int) -> Sequence[BuilderId]:
        """Return builders that are due and unclaimed, the longest due first."""
