"""Pages of builders, for lists, for people and for costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from builderd.domain.builders import Builder, Desired, JobType, Status, StopKind, Visibility
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.prices import Sum
from builderd.domain.resources import Resources
from builderd.ports.store.builders import BuilderQuery


class ListedReview(NamedTuple):
    """Verdict of the version's review, and when a finding that was accepted for it is not accepted any more."""

    passed: bool | None
    until: datetime | None

    def reviewed(self, now: datetime) -> bool | None:
        """Return the verdict at ``now``, as ``Version.reviewed`` does."""
        return False if self.passed and self.until is not None and self.until <= now else self.passed


class ListedCost(NamedTuple):
    """A builder, deleted or not, with its total cost and the resources of its current version."""

    id: BuilderId
    name: str
    resources: Resources
    spent: Sum


class CostedBuilder(NamedTuple):
    """A builder, deleted or not, with the resources of its current version, to which its costs are added."""

    id: BuilderId
    name: str
    desired: Desired
    resources: Resources


class BuilderLife(NamedTuple):
    """Fields that a builder's state in words follows from. ``candidate`` is the version that is being deployed."""

    name: str
    desired: Desired
    status: Status
    status_reason: str
    cause_reason: str
    version: int
    candidate: int | None
    asleep_since: datetime | None
    stop_kind: StopKind | None
    auto_stop_interval: int
    generation: int
    observed_generation: int


class ShownBuilder(NamedTuple):
    """A live builder with what a page for people shows of it. ``spent`` is its cost in the present month."""

    id: BuilderId
    host: str
    job_type: JobType
    visibility: Visibility
    last_active_at: datetime | None
    life: BuilderLife
    skip_review: bool
    skip_qa: bool
    qa_passed: bool | None
    review: ListedReview
    resources: Resources
    spent: Sum


class BuilderLists(Protocol):
    def shown(self, tenant: TenantId, query: BuilderQuery, now: datetime) -> Sequence[ShownBuilder]:
        """Return one page of a tenant's live builders as people see it, with costs of the month up to ``now``."""

    def lives(self, tenant: TenantId, query: BuilderQuery) -> Sequence[BuilderLife]:
        """Return one page of a tenant's live builders with no more than their states."""

    def page(self, tenant: TenantId, query: BuilderQuery) -> Sequence[Builder]:
        """Return one page of a tenant's live builders."""

    def count(self, tenant: TenantId, query: BuilderQuery) -> int:
        """Return the number of builders on all pages."""

    def costs(self, tenant: TenantId, page: int, per_page: int, now: datetime) -> Sequence[ListedCost]:
        """Return one page of a tenant's builders, oldest first, deleted ones included, with costs up to ``now``."""

    def costed(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, CostedBuilder]:
        """Return those of these builders that exist, deleted ones included."""

    def count_all(self, tenant: TenantId) -> int:
        """Return the number of a tenant's builders, deleted ones included."""
