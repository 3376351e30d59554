"""Statements of ``builder_lists``: a page is cut first, and joined with what is shown of its builders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple, Self

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
    case,
    cast,
    func,
    literal_column,
    select,
    text,
    true,
    type_coerce,
)

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
from builderd.adapters.stores.sql.types import UtcDateTime
from builderd.domain.backups import BackupStatus
from builderd.ports.store.builder_lists import BuilderLife, ListedDocuments, ListedFields

#: Columns of builders that a page is cut with: those that are shown, and what joins and order need.
_OF_BUILDER = tuple(name for name in ListedFields._fields if name in builders.c and name != "member")
_OF_PAGE = ("id", "desired", "service_token", "host", "location", *_OF_BUILDER)
_COST = ("billing", "started_at", "hourly_rate")
_RESOURCES = ("cpu", "memory", "disk")
#: Columns of a page for people, besides those of the builder's state, and those of its version's gates.
SHOWN = ("id", "host", "job_type", "visibility", "last_active_at")
GATES = ("skip_review", "skip_qa", "qa_passed", "review_passed", "review_until")
_ONE: ColumnElement[int] = literal_column("1", Integer)
_SHOWN_OF_BACKUP = ("status", "error", "fault", "created_at")
_IS_GOOD = backups.c.status == BackupStatus.DONE
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
BY_SECRET = (
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
        newest = _newest_backup(self.builder, *(backups.c[name] for name in _SHOWN_OF_BACKUP))
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
def select_page(filters: Filters, *, lateral: bool) -> Select[Any]:
    """Return the statement: the page is cut first, so that nothing is read for builders on other pages."""
    cut = _cut(filters, (builders.c[name] for name in _OF_PAGE), literal=lateral).subquery("page")
    page = _Page.of(cut, lateral=lateral)
    page = page.with_backup() if lateral else page
    return page.select(_columns(page)).order_by(*_order(filters.sort, cut))


def _cut(filters: Filters, columns: Iterable[ColumnElement[Any]], *, literal: bool) -> Select[Any]:
    found = select(*columns).where(*_conditions(filters)).order_by(*_order(filters.sort, builders))
    return _limited(found, literal=literal)


@cache
def select_lives(filters: Filters, *, literal: bool) -> Select[Any]:
    return _cut(filters, (builders.c[name] for name in LIFE), literal=literal)


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


def _columns(page: _Page) -> Iterator[ColumnElement[Any]]:
    """Yield the columns in the order of ``builder_lists._listed``."""
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
    status = newest.c.status
    found = case((status == BackupStatus.FAILED, newest.c.error), (status == BackupStatus.DONE, newest.c.fault))
    error = func.nullif(found, "")
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
