"""Pages of builders. A page is cut first, and joined with what is shown of its builders, in one statement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
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

from builderd.builders.model import Builder, Desired, JobType, Status, StopKind, Visibility
from builderd.builders.store import BUILDER_COLUMNS, BuilderQuery, read_builder
from builderd.builders.table import LIVE, builders
from builderd.core.ids import BuilderId, TenantId
from builderd.core.resources import Resources
from builderd.database.repository import Queries, batches, read_each
from builderd.money.model import Billing, Sum, month_of, seconds_between
from builderd.money.store import ledger, ledger_months
from builderd.versions.store import versions


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
_SHOWN = ("id", "host", "job_type", "visibility", "last_active_at")
_GATES = ("skip_review", "skip_qa", "qa_passed", "review_passed", "review_until")
_LIFE = tuple("desired_reason" if name == "cause_reason" else name for name in BuilderLife._fields)
_ZERO = Decimal(0)


class BuilderLists(Queries):
    def page(self, tenant: TenantId, query: BuilderQuery) -> Sequence[Builder]:
        """Return one page of a tenant's live builders."""
        return read_each(self._connection, self._cut(tenant, query, BUILDER_COLUMNS), {}, read_builder)

    def shown(self, tenant: TenantId, query: BuilderQuery, now: datetime) -> Sequence[ShownBuilder]:
        """Return one page of a tenant's live builders as people see it, with costs of the month up to ``now``."""
        month = month_of(now)
        names = dict.fromkeys((*_SHOWN, *_LIFE, "created_at", "updated_at"))
        page = self._cut(tenant, query, (builders.c[name] for name in names)).subquery("page")
        version, segment, joined = self._joined(page)
        columns = (
            *(page.c[name] for name in (*_SHOWN, *_LIFE)),
            *(version.c[name] for name in (*_GATES, *_RESOURCES)),
            _months(page, ledger_months.c.month == month),
            *(segment.c[name] for name in _COST),
        )
        statement = select(*columns).select_from(joined).order_by(*_order(query.sort, page))
        return read_each(self._connection, statement, {}, lambda row: _shown_builder(row, now, month))

    def lives(self, tenant: TenantId, query: BuilderQuery) -> Sequence[BuilderLife]:
        """Return one page of a tenant's live builders with no more than their states."""
        statement = self._cut(tenant, query, (builders.c[name] for name in ("id", *_LIFE)))
        return read_each(self._connection, statement, {}, lambda row: BuilderLife._make(row[1:]))

    def count(self, tenant: TenantId, query: BuilderQuery) -> int:
        """Return the number of builders on all pages."""
        counted = select(func.count()).select_from(builders).where(*_conditions(tenant, query))
        return int(self._connection.execute(counted).scalar_one())

    def costs(self, tenant: TenantId, page: int, per_page: int, now: datetime) -> Sequence[ListedCost]:
        """Return one page of a tenant's builders, oldest first, deleted ones included, with costs up to ``now``."""
        columns = (builders.c[name] for name in ("id", "name", "version", "created_at"))
        found = select(*columns).where(builders.c.tenant_id == tenant).order_by(*_order("created_at", builders))
        cut = self._limited(found, page, per_page).subquery("page")
        version, segment, joined = self._joined(cut)
        statement = (
            select(
                *(cut.c.id, cut.c.name),
                *(version.c[name] for name in _RESOURCES),
                _months(cut),
                *(segment.c[name] for name in _COST),
            )
            .select_from(joined)
            .order_by(*_order("created_at", cut))
        )
        return read_each(
            self._connection,
            statement,
            {},
            lambda row: ListedCost(BuilderId(row[0]), row[1], Resources(*row[2:5]), _spent(row[5:], now)),
            0,
        )

    def costed(self, ids: Sequence[BuilderId]) -> Mapping[BuilderId, CostedBuilder]:
        """Return those of these builders that exist, deleted ones included."""
        columns = (builders.c.id, builders.c.name, builders.c.desired, *(versions.c[name] for name in _RESOURCES))
        every = select(*columns).join(versions, _is_current(versions, builders))
        found: dict[BuilderId, CostedBuilder] = {}
        for some in batches(ids):
            rows = self._connection.execute(every.where(builders.c.id.in_(some)))
            found.update((row[0], CostedBuilder(row[0], row[1], row[2], Resources(*row[3:]))) for row in rows)
        return found

    def count_all(self, tenant: TenantId) -> int:
        """Return the number of a tenant's builders, deleted ones included."""
        counted = select(func.count()).select_from(builders).where(builders.c.tenant_id == tenant)
        return int(self._connection.execute(counted).scalar_one())

    def _cut(self, tenant: TenantId, query: BuilderQuery, columns: Iterable[ColumnElement[Any]]) -> Select[Any]:
        found = select(*columns).where(*_conditions(tenant, query)).order_by(*_order(query.sort, builders))
        return self._limited(found, query.page, query.per_page)

    def _limited(self, found: Select[Any], page: int, per_page: int) -> Select[Any]:
        """Cut one page. On PostgreSQL its numbers are written into the statement.

        It plans one with parameters anew each time, as if it read a tenth of the table. SQLite would prepare a
        statement for each page.
        """
        is_postgresql = self._connection.dialect.name == "postgresql"
        limit, offset = (
            bindparam(name, value, type_=BigInteger, literal_execute=is_postgresql)
            for name, value in (("limit", per_page), ("offset", (page - 1) * per_page))
        )
        return found.limit(limit).offset(offset)

    def _joined(self, page: Subquery) -> tuple[FromClause, FromClause, FromClause]:
        """Return the current versions and open segments of a page's builders, and the page joined with both.

        On PostgreSQL by searches for each row: it may read all versions to join a hundred otherwise. SQLite, which has
        no LATERAL, searches in any case.
        """
        version: FromClause = versions
        segment: FromClause = ledger
        if self._connection.dialect.name == "postgresql":
            version = select(versions).where(_is_current(versions, page)).limit(_ONE).lateral("version")
            segment = select(ledger).where(_is_open(ledger, page)).limit(_ONE).lateral("segment")
        joined = page.join(version, _is_current(version, page)).outerjoin(segment, _is_open(segment, page))
        return version, segment, joined


_ONE: ColumnElement[int] = literal_column("1", Integer)


def _conditions(tenant: TenantId, query: BuilderQuery) -> Iterator[ColumnElement[bool] | TextClause]:
    yield builders.c.tenant_id == tenant
    yield text(LIVE)
    for name in ("name", "status", "job_type"):
        if (value := getattr(query, name)) is not None:
            yield builders.c[name] == value
    if query.search:
        yield builders.c.name.contains(query.search, autoescape=True)


def _order(sort: str, table: FromClause) -> tuple[ColumnElement[Any], ...]:
    column = table.c[sort.removeprefix("-")]
    if sort == "name":
        return (column.asc(),)
    return (column.desc(), table.c.id.desc()) if sort.startswith("-") else (column.asc(), table.c.id.asc())


def _is_current(version: FromClause, page: FromClause) -> ColumnElement[bool]:
    return and_(version.c.builder_id == page.c.id, version.c.number == page.c.version)


def _is_open(segment: FromClause, page: FromClause) -> ColumnElement[bool]:
    return and_(segment.c.builder_id == page.c.id, segment.c.ended_at.is_(None))


def _months(page: Subquery, *which: ColumnElement[bool]) -> ColumnElement[Any]:
    """Return both amounts of each month as one text: their sum is exact in Python alone, SQLite has no decimals."""
    amounts = cast(ledger_months.c.running, Text) + " " + cast(ledger_months.c.paid, Text)
    of_builder = select(func.aggregate_strings(amounts, ",")).where(ledger_months.c.builder_id == page.c.id, *which)
    return of_builder.scalar_subquery()


def _shown_builder(row: Sequence[Any], now: datetime, month: datetime) -> ShownBuilder:
    at = len(_SHOWN) + len(_LIFE)
    life = BuilderLife._make(row[len(_SHOWN) : at])
    gates = at + len(_GATES)
    review = ListedReview._make(row[gates - 2 : gates])
    resources, spent = Resources(*row[gates : gates + 3]), _spent(row[gates + 3 :], now, month)
    return ShownBuilder._make((*row[: len(_SHOWN)], life, *row[at : gates - 2], review, resources, spent))


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
