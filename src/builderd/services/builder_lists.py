"""Pages of a tenant's builders, as a list shows them: two statements, whatever a page has."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import NamedTuple

from builderd.domain.builders import Desired
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.prices import Cost
from builderd.domain.resources import Resources
from builderd.ports.store import UnitOfWork
from builderd.ports.store.builder_lists import ListedBuilder
from builderd.ports.store.builders import BuilderQuery
from builderd.services import credentials, spending
from builderd.services.application import Application

#: Stored text of an empty list.
_NONE = "[]"


class ListEntry(NamedTuple):
    """A builder of a list, with what follows from its row."""

    builder: ListedBuilder
    preview_url: str
    cost: Cost
    needs_restart: bool
    review_passed: bool | None


def page(
    uow: UnitOfWork, application: Application, tenant_id: TenantId, query: BuilderQuery, now: datetime
) -> tuple[Sequence[ListEntry], int]:
    """Return one page of the tenant's live builders with costs up to ``now``, and their total number."""
    found = uow.builder_lists.page(tenant_id, query, now)
    stale = _stale(uow, tenant_id, found)
    url, rate = application.preview_domain.url, _rates(application)
    entries = [
        ListEntry(
            one,
            url(one.host),
            spending.cost_of(application, rate(one.resources), one.spent),
            one.id in stale,
            one.review.reviewed(now),
        )
        for one in found
    ]
    return entries, uow.builder_lists.count(tenant_id, query)


def _rates(application: Application) -> Callable[[Resources], Decimal]:
    """Return the hourly rate of resources, computed once for those that several builders of a page have."""
    return cache(lambda resources: spending.running_rate(application, resources))


def _stale(uow: UnitOfWork, tenant_id: TenantId, found: Sequence[ListedBuilder]) -> Collection[BuilderId]:
    """Return those that run with a credential that changed since; asks for nothing if none of them has any."""
    return credentials.stale_among(uow, tenant_id, dict(_names(found)))


def _names(found: Sequence[ListedBuilder]) -> Iterator[tuple[BuilderId, Sequence[str]]]:
    for one in found:
        if one.documents.credentials != _NONE and one.desired == Desired.RUNNING:
            yield one.id, json.loads(one.documents.credentials)
