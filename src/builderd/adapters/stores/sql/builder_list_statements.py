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
    cast,
    func,
    literal_column,
    select,
    text,
)

from builderd.adapters.stores.sql.builders import BUILDER_COLUMNS
from builderd.adapters.stores.sql.tables import (
    LIVE,
    builders,
    ledger,
    ledger_months,
    tenants,
    versions,
)
from builderd.ports.store.builder_lists import BuilderLife

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
