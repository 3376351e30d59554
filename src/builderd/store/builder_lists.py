"""Pages of builders. A page is cut first, and joined with what is shown of its builders, in one statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    Subquery,
    Text,
    TextClause,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    text,
)

from builderd.domain.builders import Builder, Desired, JobType, Status, StopKind, Visibility
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.prices import Billing, Sum, month_of, seconds_between
from builderd.domain.resources import Resources
from builderd.store.builders import BUILDER_COLUMNS, BuilderQuery, read_builder
from builderd.store.claims import BATCH
from builderd.store.damage import read_each
from builderd.store.tables import LIVE, builders, ledger, ledger_months, tenants, versions


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


_COST = ("billing", "started_at", "hourly_rate")
_RESOURCES = ("cpu", "memory", "disk")
#: Columns of a page for people, besides those of the builder's state, and those of its version's gates.
SHOWN = ("id", "host", "job_type", "visibility", "last_active_at")
GATES = ("skip_review", "skip_qa", "qa_passed", "review_passed", "review_until")
_ONE: ColumnElement[int] = literal_column("1", Integer)
LIFE = tuple("desired_reason" if name == "cause_reason" else name for name in BuilderLife._fields)


def _limited(found: Select[Any], *, literal: bool) -> Select[Any]:
    """Cut ``limit`` rows at ``offset``. With ``literal``, both are written into the statement.

    PostgreSQL plans one with parameters anew each time, as if it read a tenth of the table. SQLite would prepare a
    statement for each page.
    """
    limit = bindparam("limit", type_=Integer, literal_execute=literal)
    return found.limit(limit).offset(bindparam("offset", type_=BigInteger, literal_execute=literal))


def _order(sort: str, table: FromClause) -> tuple[ColumnElement[Any], ...]:
    column = table.c[sort.removeprefix("-")]
    if sort == "name":
        return (column.asc(),)
    return (column.desc(), table.c.id.desc()) if sort.startswith("-") else (column.asc(), table.c.id.asc())


class Filters(NamedTuple):
    """The filters that a query has, and its order: the statement is made once for each."""

    columns: tuple[str, ...]
    search: bool
    sort: str


def _conditions(filters: Filters) -> Iterator[ColumnElement[bool] | TextClause]:
    yield builders.c.tenant_id == bindparam("tenant")
    yield text(LIVE)
    for name in filters.columns:
        yield builders.c[name] == bindparam(f"of_{name}", type_=builders.c[name].type)
    if filters.search:
        yield builders.c.name.like(bindparam("search"), escape="/")


@cache
def select_count(filters: Filters) -> Select[Any]:
    return select(func.count()).select_from(builders).where(*_conditions(filters))


COUNT_OF_TENANT = select(tenants.c.live_builders).where(tenants.c.id == bindparam("tenant"))


class _Page(NamedTuple):
    """Builders of a page, with the current version and the open segment that each is joined with."""

    builder: Subquery
    version: FromClause
    segment: FromClause

    @classmethod
    def of(cls, builder: Subquery, *, lateral: bool) -> Self:
        """Join by searches for each row if ``lateral``: PostgreSQL may read all versions to join a hundred otherwise.

        SQLite, which has no LATERAL, searches in any case.
        """
        if not lateral:
            return cls(builder, versions, ledger)
        version = select(versions).where(_is_current(versions, builder)).limit(_ONE).lateral("version")
        segment = select(ledger).where(_is_open(ledger, builder)).limit(_ONE).lateral("segment")
        return cls(builder, version, segment)

    def select(self, columns: Iterator[ColumnElement[Any]]) -> Select[Any]:
        return (
            select(*columns)
            .select_from(self.builder)
            .join(self.version, _is_current(self.version, self.builder))
            .outerjoin(self.segment, _is_open(self.segment, self.builder))
        )


def _is_current(version: FromClause, page: Subquery) -> ColumnElement[bool]:
    return and_(version.c.builder_id == page.c.id, version.c.number == page.c.version)


def _is_open(segment: FromClause, page: Subquery) -> ColumnElement[bool]:
    return and_(segment.c.builder_id == page.c.id, segment.c.ended_at.is_(None))


def _cut(filters: Filters, columns: Iterable[ColumnElement[Any]], *, literal: bool) -> Select[Any]:
    found = select(*columns).where(*_conditions(filters)).order_by(*_order(filters.sort, builders))
    return _limited(found, literal=literal)


@cache
def select_page(filters: Filters, *, literal: bool) -> Select[Any]:
    return _cut(filters, BUILDER_COLUMNS, literal=literal)


@cache
def select_lives(filters: Filters, *, literal: bool) -> Select[Any]:
    return _cut(filters, (builders.c[name] for name in ("id", *LIFE)), literal=literal)


@cache
def select_shown(filters: Filters, *, lateral: bool) -> Select[Any]:
    names = dict.fromkeys((*SHOWN, *LIFE, "created_at", "updated_at"))
    cut = _cut(filters, (builders.c[name] for name in names), literal=lateral).subquery("page")
    page = _Page.of(cut, lateral=lateral)
    return page.select(_shown_columns(page)).order_by(*_order(filters.sort, cut))


def _shown_columns(page: _Page) -> Iterator[ColumnElement[Any]]:
    """Yield the columns in the order of ``builder_lists._shown_builder``."""
    yield from (page.builder.c[name] for name in (*SHOWN, *LIFE))
    yield from (page.version.c[name] for name in (*GATES, *_RESOURCES))
    yield _months(page.builder, ledger_months.c.month == bindparam("month", type_=ledger_months.c.month.type))
    yield from (page.segment.c[name] for name in _COST)


def _months(page: Subquery, *which: ColumnElement[bool]) -> ColumnElement[Any]:
    """Return both amounts of each month as one text: their sum is exact in Python alone, SQLite has no decimals."""
    amounts = cast(ledger_months.c.running, Text) + " " + cast(ledger_months.c.paid, Text)
    of_builder = select(func.aggregate_strings(amounts, ",")).where(ledger_months.c.builder_id == page.c.id, *which)
    return of_builder.scalar_subquery()


_of_tenant = builders.c.tenant_id == bindparam("tenant")
_all = (
    select(builders.c.id, builders.c.name, builders.c.version, builders.c.created_at)
    .where(_of_tenant)
    .order_by(*_order("created_at", builders))
)


@cache
def select_costs(*, lateral: bool) -> Select[Any]:
    cut = _limited(_all, literal=lateral).subquery("page")
    page = _Page.of(cut, lateral=lateral)
    return page.select(_cost_columns(page)).order_by(*_order("created_at", cut))


def _cost_columns(page: _Page) -> Iterator[ColumnElement[Any]]:
    yield from (page.builder.c.id, page.builder.c.name)
    yield from (page.version.c[name] for name in _RESOURCES)
    yield _months(page.builder)
    yield from (page.segment.c[name] for name in _COST)


COSTED = (
    select(builders.c.id, builders.c.name, builders.c.desired, versions.c.cpu, versions.c.memory, versions.c.disk)
    .join(versions, and_(versions.c.builder_id == builders.c.id, versions.c.number == builders.c.version))
    .where(builders.c.id.in_(bindparam("builders", expanding=True)))
)
COUNT_ALL = select(func.count()).select_from(builders).where(_of_tenant)

_ZERO = Decimal(0)


class BuilderLists:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lateral = connection.dialect.name == "postgresql"

    def page(self, tenant: TenantId, query: BuilderQuery) -> Sequence[Builder]:
        """Return one page of a tenant's live builders."""
        statement = select_page(_filters(query), literal=self._lateral)
        return read_each(self._connection, statement, {**_values(tenant, query), **_bounds(query)}, read_builder)

    def shown(self, tenant: TenantId, query: BuilderQuery, now: datetime) -> Sequence[ShownBuilder]:
        """Return one page of a tenant's live builders as people see it, with costs of the month up to ``now``."""
        month = month_of(now)
        values = {**_values(tenant, query), **_bounds(query), "month": month}
        statement = select_shown(_filters(query), lateral=self._lateral)
        return read_each(self._connection, statement, values, lambda row: _shown_builder(row, now, month))

    def lives(self, tenant: TenantId, query: BuilderQuery) -> Sequence[BuilderLife]:
        """Return one page of a tenant's live builders with no more than their states."""
        statement = select_lives(_filters(query), literal=self._lateral)
        values = {**_values(tenant, query), **_bounds(query)}
        return read_each(self._connection, statement, values, lambda row: BuilderLife._make(row[1:]))

    def count(self, tenant: TenantId, query: BuilderQuery) -> int:
        """Return the number of builders on all pages."""
        filters = _filters(query)
        if not filters.columns and not filters.search:
            return self._connection.execute(COUNT_OF_TENANT, {"tenant": tenant}).scalar() or 0
        number: int = self._connection.execute(select_count(filters), _values(tenant, query)).scalar_one()
        return number

    def costs(self, tenant: TenantId, page: int, per_page: int, now: datetime) -> Sequence[ListedCost]:
        """Return one page of a tenant's builders, oldest first, deleted ones included, with costs up to ``now``."""
        values = {"tenant": tenant, "limit": per_page, "offset": (page - 1) * per_page}
        return read_each(
            self._connection,
            select_costs(lateral=self._lateral),
            values,
            lambda row: ListedCost(BuilderId(row[0]), row[1], Resources(*row[2:5]), _spent(row[5:], now)),
            0,
        )

    def costed(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, CostedBuilder]:
        """Return those of these builders that exist, deleted ones included."""
        found: dict[BuilderId, CostedBuilder] = {}
        for start in range(0, len(builders), BATCH):
            rows = self._connection.execute(COSTED, {"builders": builders[start : start + BATCH]})
            found.update((row[0], CostedBuilder(*row[:3], Resources(*row[3:]))) for row in rows)
        return found

    def count_all(self, tenant: TenantId) -> int:
        """Return the number of a tenant's builders, deleted ones included."""
        number: int = self._connection.execute(COUNT_ALL, {"tenant": tenant}).scalar_one()
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
