"""Pages of builders, each by one statement that reads nothing but what a list shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection

from builderd.adapters.stores.sql import builder_list_statements as statements
from builderd.adapters.stores.sql.builder_list_statements import GATES, LIFE, SHOWN, Filters
from builderd.adapters.stores.sql.claims import BATCH
from builderd.adapters.stores.sql.prepared import Rows
from builderd.adapters.stores.sql.tokens import read_token
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.months import month_of
from builderd.domain.prices import Billing, Sum, seconds_between
from builderd.domain.resources import Resources
from builderd.domain.tokens import Token
from builderd.ports.store.builder_lists import (
    BuilderLife,
    CostedBuilder,
    ListedBuilder,
    ListedCost,
    ListedDocuments,
    ListedFields,
    ListedReview,
    ShownBuilder,
)
from builderd.ports.store.builders import BuilderQuery

_ZERO = Decimal(0)


class BuilderLists:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lateral = connection.dialect.name == "postgresql"
        #: Numbers of live builders that were read with a token.
        self._live: dict[TenantId, int] = {}

    def by_secret(self, secret_hash: str) -> Token | None:
        found = self._connection.execute(statements.BY_SECRET, {"secret_hash": secret_hash}).mappings().first()
        if found is None:
            return None
        row = dict(found)
        number = row.pop("live_builders")
        token = read_token(row)
        self._live[token.tenant_id] = number
        return token

    def page(self, tenant: TenantId, query: BuilderQuery, now: datetime) -> Sequence[ListedBuilder]:
        statement = statements.select_page(_filters(query), lateral=self._lateral)
        rows = self._connection.execute(statement, {**_values(tenant, query), **_bounds(query)})
        sizes = _Sizes()
        # Prepared rows are plain tuples without their names; the first execution's are SQLAlchemy's own.
        plain = rows.tuples() if isinstance(rows, Rows) else rows.all()
        return [_listed(row, now, sizes) for row in plain]

    def shown(self, tenant: TenantId, query: BuilderQuery, now: datetime) -> Sequence[ShownBuilder]:
        month = month_of(now)
        values = {**_values(tenant, query), **_bounds(query), "month": month}
        rows = self._connection.execute(statements.select_shown(_filters(query), lateral=self._lateral), values)
        return [_shown_builder(row, now, month) for row in rows]

    def lives(self, tenant: TenantId, query: BuilderQuery) -> Sequence[BuilderLife]:
        statement = statements.select_lives(_filters(query), literal=self._lateral)
        rows = self._connection.execute(statement, {**_values(tenant, query), **_bounds(query)})
        return [BuilderLife._make(row) for row in rows]

    def count(self, tenant: TenantId, query: BuilderQuery) -> int:
        filters = _filters(query)
        if not filters.columns and not filters.search:
            kept = self._live.get(tenant)
            if kept is None:
                kept = self._connection.execute(statements.COUNT_OF_TENANT, {"tenant": tenant}).scalar()
            return kept or 0
        number: int = self._connection.execute(statements.select_count(filters), _values(tenant, query)).scalar_one()
        return number

    def costs(self, tenant: TenantId, page: int, per_page: int, now: datetime) -> Sequence[ListedCost]:
        values = {"tenant": tenant, "limit": per_page, "offset": (page - 1) * per_page}
        return [
            ListedCost(BuilderId(row[0]), row[1], Resources(*row[2:5]), _spent(row[5:], now))
            for row in self._connection.execute(statements.select_costs(lateral=self._lateral), values)
        ]

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


_SHOWN_END = 4 + len(ListedFields._fields)
_DOCUMENTS_END = _SHOWN_END + len(ListedDocuments._fields)


class _Sizes(dict[Any, Resources]):
    """Resources of a page's builders by their amounts: most have the same."""

    def __missing__(self, amounts: Any) -> Resources:
        return self.setdefault(amounts, Resources(*amounts))


def _listed(row: Sequence[Any], now: datetime, sizes: _Sizes) -> ListedBuilder:
    at = _DOCUMENTS_END
    fields = ListedFields._make(row[4:_SHOWN_END])
    documents = ListedDocuments._make(row[_SHOWN_END:at])
    review, resources = ListedReview(row[at], row[at + 1]), sizes[row[at + 2 : at + 5]]
    return ListedBuilder(
        row[0], row[1], row[2], row[3], fields, documents, review, resources, _spent(row[at + 5 :], now)
    )


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
