"""Metrics: a builder's present usage, and its usage in the last hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from builderd.domain.ids import TenantId
from builderd.domain.metrics import Usage, UsageSample, resample, start_of
from builderd.domain.resources import Resources
from builderd.services import builders
from builderd.services.application import Application
from builderd.store import UnitOfWork


@dataclass(frozen=True, slots=True)
class Period:
    """The last ``span`` before ``end``, in steps of ``step``; both are multiples of ``domain.metrics.STEP``."""

    end: datetime
    span: timedelta
    step: timedelta


@dataclass(frozen=True, slots=True)
class Report:
    """``now`` is None for a builder that does not run here.

    ``steps``: (start, usage), oldest first; the last one is incomplete.
    """

    now: UsageSample | None
    limits: Resources
    step: timedelta
    steps: Sequence[tuple[datetime, Usage]]


def report(
    uow: UnitOfWork,
    application: Application,
    tenant_id: TenantId,
    builder_id: str,
    period: Period,
) -> Report:
    """Return the usage in a period. Raises ``NotFound``."""
    builder = builders.get(uow, tenant_id, builder_id)
    version = uow.versions.get(builder.id, builder.version)
    assert version is not None, "a builder's current version is always stored"
    count = -(-period.span // period.step)
    begin = start_of(period.end, period.step) - (count - 1) * period.step
    steps = resample(uow.metrics.of_builder(builder.id, begin), begin, period.step, count)
    return Report(application.usage.of_builder(builder.id), version.settings.resources, period.step, steps)
