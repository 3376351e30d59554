"""A builder as it is shown, with or without the token that asks for it, by one statement: each takes as long again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, Text, and_, bindparam, cast, exists, func, select, text

from builderd.adapters.stores.sql.builders import BUILDER_COLUMNS, read_builder
from builderd.adapters.stores.sql.ledger import read_segment
from builderd.adapters.stores.sql.sandboxes import read_sandbox
from builderd.adapters.stores.sql.tables import (
    LIVE,
    backups,
    builders,
    ledger,
    ledger_months,
    sandboxes,
    tokens,
    versions,
)
from builderd.adapters.stores.sql.tokens import read_token
from builderd.adapters.stores.sql.versions import read_version
from builderd.domain.ids import BuilderId
from builderd.domain.prices import Sum, total
from builderd.ports.store.builder_reads import BuilderRead, CommandRead, ShownBuilder

_id: BindParameter[str] = bindparam("builder")


def _size(column: ColumnElement[object]) -> ColumnElement[int]:
    return func.coalesce(func.length(cast(column, Text)), 0)


_large = (versions.c.env, versions.c.env_file_values, versions.c.stdin)
_is_small = sum((_size(column) for column in _large[1:]), _size(_large[0])) <= bindparam("max_size")
_segment = tuple(
    ledger.c[name] for name in ("tenant_id", "builder_id", "billing", "started_at", "ended_at", "hourly_rate")
)
#: Columns of each value, in the order of the statement.
_SHOWN = (BUILDER_COLUMNS, tuple(versions.c), _segment)
# One text with both amounts of each month: their sum is exact in Python alone, since SQLite has no decimals.
_amounts = cast(ledger_months.c.running, Text) + " " + cast(ledger_months.c.paid, Text)
_months = select(func.aggregate_strings(_amounts, ",")).where(ledger_months.c.builder_id == _id).scalar_subquery()
_has_backups = exists().where(backups.c.builder_id == _id)
_is_of_token = and_(builders.c.id == _id, builders.c.tenant_id == tokens.c.tenant_id, text(f"builders.{LIVE}"))
_open_segment = and_(ledger.c.builder_id == builders.c.id, ledger.c.ended_at.is_(None))
_of_version = and_(versions.c.builder_id == builders.c.id, versions.c.number == builders.c.version)
_VIEW = (
    select(*(column for part in _SHOWN for column in part), _months, _has_backups)
    .select_from(builders)
    .join(versions, _of_version)
    .outerjoin(ledger, _open_segment)
    .where(builders.c.id == _id)
)
_READ = (
    select(*tokens.c, *(column for part in _SHOWN for column in part), _months, _has_backups)
    .select_from(tokens)
    .outerjoin(builders, _is_of_token)
    .outerjoin(versions, and_(_of_version, _is_small))
    .outerjoin(ledger, _open_segment)
    .where(tokens.c.secret_hash == bindparam("secret_hash"))
)
_is_open = and_(sandboxes.c.builder_id == builders.c.id, sandboxes.c.end_cause.is_(None), sandboxes.c.trial.is_(False))
_COMMAND = (
    select(*tokens.c, *BUILDER_COLUMNS, *sandboxes.c)
    .select_from(tokens)
    .outerjoin(builders, _is_of_token)
    .outerjoin(sandboxes, _is_open)
    .where(tokens.c.secret_hash == bindparam("secret_hash"))
)
_SANDBOX_NAMES = tuple(column.name for column in sandboxes.c)
_TOKEN_NAMES, _VERSION_NAMES, _SEGMENT_NAMES = (
    tuple(column.key for column in part) for part in (tuple(tokens.c), _SHOWN[1], _SHOWN[2])
)
_TOKEN_END = len(_TOKEN_NAMES)
#: Of a builder, its version and its segment, after those of the token if there is one.
_BUILDER_END = len(BUILDER_COLUMNS)
_VERSION_END = _BUILDER_END + len(_VERSION_NAMES)
_COMMAND_END = _TOKEN_END + _BUILDER_END


class BuilderReads:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def by_secret(self, secret_hash: str, builder: BuilderId, now: datetime, max_size: int) -> BuilderRead | None:
        values = {"secret_hash": secret_hash, "builder": builder, "max_size": max_size}
        row = self._connection.execute(_READ, values).first()
        if row is None:
            return None
        token, shown = read_token(dict(zip(_TOKEN_NAMES, row[:_TOKEN_END], strict=True))), row[_TOKEN_END:]
        return BuilderRead(token, _shown(shown, now) if shown[0] is not None else None)

    def shown(self, builder: BuilderId, now: datetime) -> ShownBuilder | None:
        row = self._connection.execute(_VIEW, {"builder": builder}).first()
        return _shown(row, now) if row is not None else None

    def for_command(self, secret_hash: str, builder: BuilderId) -> CommandRead | None:
        row = self._connection.execute(_COMMAND, {"secret_hash": secret_hash, "builder": builder}).first()
        if row is None:
            return None
        of_token, of_builder, of_sandbox = row[:_TOKEN_END], row[_TOKEN_END:_COMMAND_END], row[_COMMAND_END:]
        return CommandRead(
            read_token(dict(zip(_TOKEN_NAMES, of_token, strict=True))),
            read_builder(of_builder) if of_builder[0] is not None else None,
            read_sandbox(dict(zip(_SANDBOX_NAMES, of_sandbox, strict=True))) if of_sandbox[0] is not None else None,
        )


def _shown(row: Sequence[Any], now: datetime) -> ShownBuilder:
    of_version, of_segment = row[_BUILDER_END:_VERSION_END], row[_VERSION_END:-2]
    version = read_version(dict(zip(_VERSION_NAMES, of_version, strict=True))) if of_version[0] else None
    months = (map(Decimal, month.split(" ")) for month in (row[-2] or "").split(",") if month)
    spent = sum((Sum(running, paid) for running, paid in months), Sum())
    if of_segment[0] is not None:
        spent += total([read_segment(dict(zip(_SEGMENT_NAMES, of_segment, strict=True)))], now)
    return ShownBuilder(read_builder(row[:_BUILDER_END]), version, spent, bool(row[-1]))
