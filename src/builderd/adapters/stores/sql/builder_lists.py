"""Pages of builders, each by one statement that reads nothing but what a list shows."""

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
    case,
    cast,
    func,
    literal_column,
    select,
    text,
    true,
    type_coerce,
)

from builderd.adapters.stores.sql.claims import BATCH
from builderd.adapters.stores.sql.shown_times import shown_time
from builderd.adapters.stores.sql.tables import (
    LIVE,
    backups,
    builders,
    ledger,
    ledger_months,
    tenants,
    tokens,
    versions,
)
from builderd.adapters.stores.sql.tokens import read_token
from builderd.adapters.stores.sql.types import UtcDateTime
from builderd.domain.backups import BackupStatus
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

#: Columns of builders that a page is cut with: those that are shown, and what joins and order need.
_OF_BUILDER = tuple(name for name in ListedFields._fields if name in builders.c and name != "member")
_OF_PAGE = ("id", "desired", "service_token", "host", "location", *_OF_BUILDER)
_COST = ("billing", "started_at", "hourly_rate")
_RESOURCES = ("cpu", "memory", "disk")
#: Columns of a page for people, besides those of the builder's state, and those of its version's gates.
_SHOWN = ("id", "host", "job_type", "visibility", "last_active_at")
_GATES = ("skip_review", "skip_qa", "qa_passed", "review_passed", "review_until")
_ONE: ColumnElement[int] = literal_column("1", Integer)
_ZERO = Decimal(0)
_IS_GOOD = backups.c.status == BackupStatus.DONE
_LIFE = tuple("desired_reason" if name == "cause_reason" else name for name in BuilderLife._fields)


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


class _Filters(NamedTuple):
    """The filters that a query has, and its order: the statement is made once for each."""

    columns: tuple[str, ...]
    search: bool
    sort: str


def _conditions(filters: _Filters) -> Iterator[ColumnElement[bool] | TextClause]:
    yield builders.c.tenant_id == bindparam("tenant")
    yield text(LIVE)
    for name in filters.columns:
        yield builders.c[name] == bindparam(f"of_{name}", type_=builders.c[name].type)
    if filters.search:
        yield builders.c.name.like(bindparam("search"), escape="/")


@cache
def _count(filters: _Filters) -> Select[Any]:
    return select(func.count()).select_from(builders).where(*_conditions(filters))


_COUNT_OF_TENANT = select(tenants.c.live_builders).where(tenants.c.id == bindparam("tenant"))
_BY_SECRET = (
    select(*tokens.c, tenants.c.live_builders)
    .join(tenants, tenants.c.id == tokens.c.tenant_id)
    .where(tokens.c.secret_hash == bindparam("secret_hash"))
)


class _Page(NamedTuple):
    """Builders of a page, with the current version and the open segment that each is joined with."""

    builder: Subquery
    version: FromClause
    segment: FromClause
    #: Its newest backup, where that is joined.
    backup: FromClause | None = None

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

    def with_backup(self) -> Self:
        """Join by a search for the newest backup too, so that two columns follow from one search."""
        newest = _newest_backup(self.builder, backups.c.status, backups.c.error, backups.c.created_at)
        return self._replace(backup=newest.lateral("backup"))

    def select(self, columns: Iterator[ColumnElement[Any]]) -> Select[Any]:
        found = (
            select(*columns)
            .select_from(self.builder)
            .join(self.version, _is_current(self.version, self.builder))
            .outerjoin(self.segment, _is_open(self.segment, self.builder))
        )
        return found if self.backup is None else found.outerjoin(self.backup, true())


def _is_current(version: FromClause, page: Subquery) -> ColumnElement[bool]:
    return and_(version.c.builder_id == page.c.id, version.c.number == page.c.version)


def _is_open(segment: FromClause, page: Subquery) -> ColumnElement[bool]:
    return and_(segment.c.builder_id == page.c.id, segment.c.ended_at.is_(None))


@cache
def _page(filters: _Filters, *, lateral: bool) -> Select[Any]:
    """Return the statement: the page is cut first, so that nothing is read for builders on other pages."""
    cut = _cut(filters, (builders.c[name] for name in _OF_PAGE), literal=lateral).subquery("page")
    page = _Page.of(cut, lateral=lateral)
    page = page.with_backup() if lateral else page
    return page.select(_columns(page)).order_by(*_order(filters.sort, cut))


def _cut(filters: _Filters, columns: Iterable[ColumnElement[Any]], *, literal: bool) -> Select[Any]:
    found = select(*columns).where(*_conditions(filters)).order_by(*_order(filters.sort, builders))
    return _limited(found, literal=literal)


@cache
def _lives(filters: _Filters, *, literal: bool) -> Select[Any]:
    return _cut(filters, (builders.c[name] for name in _LIFE), literal=literal)


@cache
def _shown(filters: _Filters, *, lateral: bool) -> Select[Any]:
    names = dict.fromkeys((*_SHOWN, *_LIFE, "created_at", "updated_at"))
    cut = _cut(filters, (builders.c[name] for name in names), literal=lateral).subquery("page")
    page = _Page.of(cut, lateral=lateral)
    return page.select(_shown_columns(page)).order_by(*_order(filters.sort, cut))


def _shown_columns(page: _Page) -> Iterator[ColumnElement[Any]]:
    """Yield the columns in the order of ``_shown_builder``."""
    yield from (page.builder.c[name] for name in (*_SHOWN, *_LIFE))
    yield from (page.version.c[name] for name in (*_GATES, *_RESOURCES))
    yield _months(page.builder, ledger_months.c.month == bindparam("month", type_=ledger_months.c.month.type))
    yield from (page.segment.c[name] for name in _COST)


def _columns(page: _Page) -> Iterator[ColumnElement[Any]]:
    """Yield the columns in the order of ``_listed``."""
    version = page.version
    yield from (_plain(page.builder.c[name]) for name in ("id", "desired", "service_token", "host"))
    yield from (_field(page, name) for name in ListedFields._fields)
    yield from (func.coalesce(cast(version.c[name], Text), "{}") for name in ListedDocuments._fields)
    yield from (version.c[name] for name in ("review_passed", "review_until", *_RESOURCES))
    yield _months(page.builder)
    yield from (page.segment.c[name] for name in _COST)


def _field(page: _Page, name: str) -> ColumnElement[Any]:
    if name == "last_backup_at":
        return _last_good(page)
    if name == "last_backup_error":
        return _last_error(page)
    if name == "member":
        return page.builder.c.location
    return _plain(page.builder.c[name] if name in _OF_BUILDER else page.version.c[name])


def _plain(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Read an enumeration as the text that is stored, and a time as the text that is shown."""
    if isinstance(column.type, UtcDateTime):
        return shown_time(column)
    return type_coerce(column, Text()) if hasattr(column.type, "enum_class") else column


def _last_good(page: _Page) -> ColumnElement[Any]:
    good = _newest_backup(page.builder, shown_time(backups.c.created_at)).where(_IS_GOOD).scalar_subquery()
    newest = page.backup
    if newest is None:
        return good
    is_good = newest.c.status == BackupStatus.DONE
    return case((is_good, shown_time(newest.c.created_at)), (newest.c.status.is_not(None), good))


def _last_error(page: _Page) -> ColumnElement[Any]:
    newest = backups if page.backup is None else page.backup
    error = case((newest.c.status == BackupStatus.FAILED, newest.c.error))
    return error if page.backup is not None else _newest_backup(page.builder, error).scalar_subquery()


def _newest_backup(page: Subquery, *columns: ColumnElement[Any]) -> Select[Any]:
    of_builder = select(*columns).where(backups.c.builder_id == page.c.id)
    return of_builder.order_by(backups.c.created_at.desc()).limit(_ONE)


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
def _costs(*, lateral: bool) -> Select[Any]:
    cut = _limited(_all, literal=lateral).subquery("page")
    page = _Page.of(cut, lateral=lateral)
    return page.select(_cost_columns(page)).order_by(*_order("created_at", cut))


def _cost_columns(page: _Page) -> Iterator[ColumnElement[Any]]:
    yield from (page.builder.c.id, page.builder.c.name)
    yield from (page.version.c[name] for name in _RESOURCES)
    yield _months(page.builder)
    yield from (page.segment.c[name] for name in _COST)


_COSTED = (
    select(builders.c.id, builders.c.name, builders.c.desired, versions.c.cpu, versions.c.memory, versions.c.disk)
    .join(versions, and_(versions.c.builder_id == builders.c.id, versions.c.number == builders.c.version))
    .where(builders.c.id.in_(bindparam("builders", expanding=True)))
)
_COUNT_ALL = select(func.count()).select_from(builders).where(_of_tenant)


class BuilderLists:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lateral = connection.dialect.name == "postgresql"
        #: Numbers of live builders that were read with a token.
        self._live: dict[TenantId, int] = {}

    def by_secret(self, secret_hash: str) -> Token | None:
        found = self._connection.execute(_BY_SECRET, {"secret_hash": secret_hash}).mappings().first()
        if found is None:
            return None
        row = dict(found)
        number = row.pop("live_builders")
        token = read_token(row)
        self._live[token.tenant_id] = number
        return token

    def page(self, tenant: TenantId, query: BuilderQuery, now: datetime) -> Sequence[ListedBuilder]:
        statement = _page(_filters(query), lateral=self._lateral)
        rows = self._connection.execute(statement, {**_values(tenant, query), **_bounds(query)})
        sizes = _Sizes()
        return [_listed(row, now, sizes) for row in rows.tuples().all()]

    def shown(self, tenant: TenantId, query: BuilderQuery, now: datetime) -> Sequence[ShownBuilder]:
        month = month_of(now)
        values = {**_values(tenant, query), **_bounds(query), "month": month}
        rows = self._connection.execute(_shown(_filters(query), lateral=self._lateral), values)
        return [_shown_builder(row, now, month) for row in rows]

    def lives(self, tenant: TenantId, query: BuilderQuery) -> Sequence[BuilderLife]:
        statement = _lives(_filters(query), literal=self._lateral)
        rows = self._connection.execute(statement, {**_values(tenant, query), **_bounds(query)})
        return [BuilderLife._make(row) for row in rows]

    def count(self, tenant: TenantId, query: BuilderQuery) -> int:
        filters = _filters(query)
        if not filters.columns and not filters.search:
            kept = self._live.get(tenant)
            if kept is None:
                kept = self._connection.execute(_COUNT_OF_TENANT, {"tenant": tenant}).scalar()
            return kept or 0
        number: int = self._connection.execute(_count(filters), _values(tenant, query)).scalar_one()
        return number

    def costs(self, tenant: TenantId, page: int, per_page: int, now: datetime) -> Sequence[ListedCost]:
        values = {"tenant": tenant, "limit": per_page, "offset": (page - 1) * per_page}
        return [
            ListedCost(BuilderId(row[0]), row[1], Resources(*row[2:5]), _spent(row[5:], now))
            for row in self._connection.execute(_costs(lateral=self._lateral), values)
        ]

    def costed(self, builders: Sequence[BuilderId]) -> Mapping[BuilderId, CostedBuilder]:
        found: dict[BuilderId, CostedBuilder] = {}
        for start in range(0, len(builders), BATCH):
            rows = self._connection.execute(_COSTED, {"builders": builders[start : start + BATCH]})
            found.update((row[0], CostedBuilder(*row[:3], Resources(*row[3:]))) for row in rows)
        return found

    def count_all(self, tenant: TenantId) -> int:
        number: int = self._connection.execute(_COUNT_ALL, {"tenant": tenant}).scalar_one()
        return number


_FILTERS = ("name", "status", "job_type")


def _filters(query: BuilderQuery) -> _Filters:
    columns = tuple(name for name in _FILTERS if getattr(query, name) is not None)
    return _Filters(columns, bool(query.search), query.sort)


def _values(tenant: TenantId, query: BuilderQuery) -> dict[str, Any]:
    values: dict[str, Any] = {f"of_{name}": getattr(query, name) for name in _FILTERS}
    if query.search:
        escaped = query.search.replace("/", "//").replace("%", "/%").replace("_", "/_")
        values["search"] = f"%{escaped}%"
    return {"tenant": tenant, **values}


def _bounds(query: BuilderQuery) -> dict[str, Any]:
    return {"limit": query.per_page, "offset": (query.page - 1) * query.per_page}


def _shown_builder(row: Sequence[Any], now: datetime, month: datetime) -> ShownBuilder:
    at = len(_SHOWN) + len(_LIFE)
    life = BuilderLife._make(row[len(_SHOWN) : at])
    gates = at + len(_GATES)
    review = ListedReview._make(row[gates - 2 : gates])
    resources, spent = Resources(*row[gates : gates + 3]), _spent(row[gates + 3 :], now, month)
    return ShownBuilder._make((*row[: len(_SHOWN)], life, *row[at : gates - 2], review, resources, spent))


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
