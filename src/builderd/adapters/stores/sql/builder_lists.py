"""Pages of builders, each by one statement that reads nothing but what a list shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection

from builderd.adapters.stores.sql import builder_list_statements as statements
from builderd.adapters.stores.sql.builder_list_statements import GATES, LIFE, SHOWN, Filters
from builderd.adapters.stores.sql.builders import read_builder
from builderd.adapters.stores.sql.claims import BATCH
from builderd.adapters.stores.sql.damage import read_each
from builderd.domain.builders import Builder
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.months import month_of
from builderd.domain.prices import Billing, Sum, seconds_between
from builderd.domain.resources import Resources
from builderd.ports.store.builder_lists import (
    BuilderLife,
    CostedBuilder,
    ListedCost,
    ListedReview,
    ShownBuilder,
)
from builderd.ports.store.builders import BuilderQuery

_ZERO = Decimal(0)


class BuilderLists:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lateral = connection.dialect.name == "postgresql"

    def page(self, tenant: TenantId, query: BuilderQuery) -> Sequence[Builder]:
        statement = statements.select_page(_filters(query), literal=self._lateral)
        return read_each(self._connection, statement, {**_values(tenant, query), **_bounds(query)}, read_builder)

    def shown(self, tenant: TenantId, query: BuilderQuery, now: datetime) -> Sequence[ShownBuilder]:
        month = month_of(now)
        values = {**_values(tenant, query), **_bounds(query), "month": month}
        statement = statements.select_shown(_filters(query), lateral=self._lateral)
        return read_each(self._connection, statement, values, lambda row: _shown_builder(row, now, month))

    def lives(self, tenant: TenantId, query: BuilderQuery) -> Sequence[BuilderLife]:
        statement = statements.select_lives(_filters(query), literal=self._lateral)
        values = {**_values(tenant, query), **_bounds(query)}
        return read_each(self._connection, statement, values, lambda row: BuilderLife._make(row[1:]))

    def count(self, tenant: TenantId, query: BuilderQuery) -> int:
        filters = _filters(query)
        if not filters.columns and not filters.search:
            return self._connection.execute(statements.COUNT_OF_TENANT, {"tenant": tenant}).scalar() or 0
        number: int = self._connection.execute(statements.select_count(filters), _values(tenant, query)).scalar_one()
        return number

    def costs(self, tenant: TenantId, page: int, per_page: int, now: datetime) -> Sequence[ListedCost]:
        values = {"tenant": tenant, "limit": per_page, "offset": (page - 1) * per_page}
        return read_each(
            self._connection,
            statements.select_costs(lateral=self._lateral),
            values,
            lambda row: ListedCost(BuilderId(row[0]), row[1], Resources(*row[2:5]), _spent(row[5:], now)),
            0,
        )

    def costed(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, CostedBuilder]:
        found: dict[BuilderId, CostedBuilder] = {}
        for start in range(0, len(builders), BATCH):
            rows = self._connection.execute(statements.COSTED, {"builders": builders[start : start + BATCH]})
            found.update((row[0], CostedBuilder(*row[:3], Resources(*row[3:]))) for row in rows)
        return found

    def count_all(self, tenant: TenantId) -> int:
        number: int = self._connection.execute(statements.COUNT_ALL, {"tenant": tenant}).scalar_one()
        return number


_FILTERS = ("name", "status", "job_type")


def _filters(query: BuilderQuery) -> Filters:
    columns = tuple(name for name in _FILTERS if getattr(query, name) is not None)
    return Filters(columns, bool(query.search), query.sort)


def _values(tenant: TenantId, query: BuilderQuery) -> dict[str, Any]:
    values: dict[str, Any] = {f"of_{name}": getattr(query, name) for name in _FILTERS}
    if query.search:
        escaped = query.search.replace("/", "//").replace("%", "/%").replace("_", "/_")
        values["search"] = f"%{escaped}%"
    return {"tenant": tenant, **values}


def _bounds(query: BuilderQuery) -> dict[str, Any]:
    return {"limit": query.per_page, "offset": (query.page - 1) * query.per_page}


def _shown_builder(row: Sequence[Any], now: datetime, month: datetime) -> ShownBuilder:
    at = len(SHOWN) + len(LIFE)
    life = BuilderLife._make(row[len(SHOWN) : at])
    gates = at + len(GATES)
    review = ListedReview._make(row[gates - 2 : gates])
    resources, spent = Resources(*row[gates : gates + 3]), _spent(row[gates + 3 :], now, month)
    return ShownBuilder._make((*row[: len(SHOWN)], life, *row[at : gates - 2], review, resources, spent))


def _spent(amounts_and_segment: Sequence[Any], now: datetime, since: datetime | None = None) -> Sum:
    """Return the sum of the months' amounts, as ``_months`` reads them, and of the open segment after them."""
    months, billing, started_at, rate = amounts_and_segment
    running = paid = _ZERO
    for month in months.split(",") if months else ():
        more_running, more_paid = month.split(" ")
        running, paid = running + Decimal(more_running), paid + Decimal(more_paid)
    if billing is not None:
        # As ``domain.prices.total`` adds a segment, without an object for it: a page has a hundred.
        seconds = seconds_between(max(started_at, since) if since else started_at, now)
        running, paid = (running + seconds if billing is Billing.RUNNING else running), paid + seconds * rate
    return Sum(running, paid)
