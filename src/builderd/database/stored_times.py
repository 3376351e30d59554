"""Times in all tables, by the tables' metadata: a rule for the name of each column.

Documents are left out, such as the hours of a token's calls and the attempts of deliveries: they are only shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, Table, func, select, update

from builderd.builders.model import MAX_SECONDS
from builderd.database.columns import metadata
from builderd.database.lease import leases
from builderd.database.repository import Queries, Transaction
from builderd.database.types import UtcDateTime
from builderd.money.store import Ledger
from builderd.money.store import ledger as segments

#: Something happened then: never after now.
PAST = frozenset(
    (
        *("accepted_at", "asleep_since", "cap_warned_at", "checked_at", "created_at", "deleted_at", "disk_released_at"),
        *("drill_base_at", "drilled_at", "end_at", "ended_at", "finished_at", "forgotten_at", "gate_at"),
        *("last_active_at", "last_success_at", "last_used_at", "listening_at", "ordered_at", "proven_at", "pruned_at"),
        *("released_at", "requested_at", "reviewed_at", "revoked_at", "seen_at", "started_at", "time", "updated_at"),
        "verified_at",
    )
)
#: Work is looked at then: earlier does no harm.
DUE = frozenset(
    (
        *("backup_check_at", "claimed_until", "due_at", "held_until", "next_try_at", "not_before", "retry_at"),
        "spending_due_at",
    )
)
#: Ends, which were a time after the beginning of their row.
ENDS, BEGINNINGS = "expires_at", ("created_at", "accepted_at")
#: Columns that no rule above is for, and why.
LEFT_OUT: Mapping[str, str] = {
    "class_times.start": "part of a key; measured again when that time comes, and expired by retention",
    "metrics.start": "part of a key; measured again when that time comes, and expired by retention",
    "database_lease.renewed_at": "by the database's clock",
    "services.seen_at": "by the database's clock",
    "domains.expires_at": "as the certificate has it",
    "wildcard_certificates.expires_at": "as the certificate has it",
    "versions.review_until": "a date that a person chose",
    "ledger.started_at": "changed with the sums of months, by the ledger",
    "ledger.ended_at": "changed with the sums of months, by the ledger",
    "ledger_months.month": "the key of a sum, which the ledger changes",
    "tenant_months.month": "the key of a sum, which the ledger changes",
}


def time_columns() -> Iterator[Column[Any]]:
    """Return all columns of times but those left out."""
    for table in metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, UtcDateTime) and str(column) not in LEFT_OUT:
                yield column


class StoredTimes(Queries):
    def later_than(self, now: datetime) -> Mapping[str, int]:
        """Return how many times of the past lie after ``now``, by ``table.column``. Reads all rows."""
        columns = [one for one in time_columns() if one.name in PAST]
        columns += [segments.c.started_at, segments.c.ended_at]
        counts = {
            str(one): self._connection.execute(select(func.count()).where(one > now)).scalar_one() for one in columns
        }
        return {name: count for name, count in counts.items() if count}

    def repair(self, now: datetime) -> Mapping[str, int]:
        """Mend what a clock that was ahead wrote; return how many times of the past it changed, by ``table.column``.

        Times of the past become ``now``, what is due later becomes due now, ends move with the beginning of their row,
        and what is billed after ``now`` is not billed. No service may run.
        """
        found = self.later_than(now)
        Ledger(Transaction(self._connection, writes=True, written=set())).end_at(now)
        self._repair_ends(now)
        for column in time_columns():
            if column.name in PAST | DUE:
                self._connection.execute(update(column.table).where(column > now).values({column.name: now}))
        return found

    def _repair_ends(self, now: datetime) -> None:
        for column in time_columns():
            if column.name == ENDS:
                table = column.table
                begun = next(table.c[name] for name in BEGINNINGS if name in table.c)
                rows = select(*_key(table), begun, column).where(begun > now, column.is_not(None))
                for *key, beginning, end in self._connection.execute(rows).all():
                    of_row = (part == value for part, value in zip(_key(table), key, strict=True))
                    self._change(update(table).where(*of_row).values({column.name: end - (beginning - now)}))
        # A lease can be renewed, so its beginning may be right.
        most = now + timedelta(seconds=MAX_SECONDS)
        self._change(update(leases).where(leases.c.expires_at > most).values(expires_at=most))


def _key(table: Any) -> tuple[Column[Any], ...]:
    assert isinstance(table, Table)
    return tuple(table.primary_key.columns)
