"""What a service costs beside many stopped builders of one tenant: nothing may grow with what is stored.

    script/bench scale [--rows 5,10000,100000] [--database sqlite,postgresql] [--rounds N] [--json FILE]

One real builder is made and stopped, and copied in the database while no service runs: with its version, its sandbox
that ended, its ledger, and a backup that is done. Then the service starts. The copies have no disk and are never
started; their next backup is due in a day.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import httpx
from benchmarks.lifecycle import BARE, User
from sqlalchemy import Connection, Engine, Table, create_engine, insert, make_url, select, text, update
from tests.acceptance.live_service import LiveService, body
from tests.postgres import find_binaries, run_server

from builderd.adapters.stores.sql.rows import row_of
from builderd.adapters.stores.sql.tables import (
    backups,
    builders,
    events,
    ledger,
    ledger_months,
    sandboxes,
    tenant_months,
    tenants,
    versions,
)
from builderd.domain.backups import Backup, BackupKind, BackupStatus
from builderd.domain.ids import BackupId, BuilderId, new_id, new_secret

#: Seconds after readiness in which the service's CPU time is counted.
CPU_SPAN = 30.0
#: Calls whose 50th and 99th percentile are told.
LISTS = 300
#: Rows that are inserted by one statement.
BATCH = 5_000
#: Disk of a copy, in GB.
TINY = 1e-6
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

Row = dict[str, Any]


def copy_builder(url: str, number: int) -> None:
    """Store so many copies of the one builder there is."""
    engine = open_database(url)
    with engine.begin() as connection:
        (original,) = rows_of(connection, builders)
        parts = {table: rows_of(connection, table) for table in (versions, sandboxes, ledger, ledger_months, events)}
        for start in range(0, number, BATCH):
            ids = [new_id() for _ in range(start, min(start + BATCH, number))]
            connection.execute(insert(builders), [builder_row(original, one) for one in ids])
            for table, rows in parts.items():
                copies = [part_row(table, row, one) for one in ids for row in rows]
                if copies:
                    connection.execute(insert(table), copies)
            connection.execute(insert(backups), [backup_row(original, one) for one in ids])
        add_to_tenant(connection, parts[ledger_months], number)
        counted = {"live_builders": tenants.c.live_builders + number}
        connection.execute(update(tenants).where(tenants.c.id == original["tenant_id"]).values(**counted))
        if engine.dialect.name == "postgresql":
            # As autovacuum does within a minute. Without it, plans are those for a table of a few rows.
            connection.execute(text("ANALYZE"))
    engine.dispose()


def add_to_tenant(connection: Connection, months: Sequence[Row], number: int) -> None:
    """Add the closed costs of the copies to those of their tenant."""
    for row in months:
        of_month = (tenant_months.c.tenant_id == row["tenant_id"], tenant_months.c.month == row["month"])
        found = connection.execute(select(tenant_months).where(*of_month)).one()
        more = {name: getattr(found, name) + number * row[name] for name in ("running", "paid")}
        connection.execute(update(tenant_months).where(*of_month).values(**more))


def open_database(url: str) -> Engine:
    parsed = make_url(url)
    driver = "sqlite+pysqlite" if parsed.get_backend_name() == "sqlite" else "postgresql+psycopg"
    return create_engine(parsed.set(drivername=driver))


def rows_of(connection: Connection, table: Table) -> Sequence[Row]:
    return [dict(zip(table.columns.keys(), row, strict=True)) for row in connection.execute(select(table))]


def builder_row(original: Row, builder_id: str) -> Row:
    own: Row = {"id": builder_id, "name": f"copy-{builder_id}", "host": f"copy-{builder_id}.localhost"}
    created = original["created_at"] - timedelta(microseconds=uuid.UUID(builder_id).int % 10**9)
    own |= {"disk": new_id(), "service_token": new_secret("bds"), "reserved_disk": TINY}
    now = datetime.now(UTC)
    # As a settled one: copies of a builder that is still claimed would all be worked on at the start.
    own |= {"claimed_by": None, "claimed_until": None, "due_at": None}
    own |= {"backup_interval_hours": 24, "backup_check_at": now + timedelta(hours=24), "drill_base_at": now}
    return {**original, **own, "created_at": created}


def backup_row(original: Row, builder_id: str) -> Row:
    """Return the row of a builder's finished backup. Nothing reads it from the repository."""
    now = datetime.now(UTC)
    names = ("tenant_id", "version")
    backup = Backup(
        id=BackupId(new_id()),
        builder_id=BuilderId(builder_id),
        builder_name="copy",
        kind=BackupKind.SCHEDULED,
        status=BackupStatus.DONE,
        actor="system",
        owner="none",
        created_at=now,
        finished_at=now,
        snapshot="0" * 64,
        **{name: original[name] for name in names},
    )
    return row_of(backup)


def part_row(table: Table, row: Row, builder_id: str) -> Row:
    """Return a row of another table for a copy. Its disk counts next to nothing of the machine's capacity."""
    copied = {**row, "builder_id": builder_id}
    if table in (ledger, events):
        del copied["id"]
    elif table is sandboxes:
        copied["id"] = new_id()
    elif table is versions:
        copied["disk"] = TINY
    return copied


def measure(number: int, rounds: int, database: str | None) -> Row:
    with tempfile.TemporaryDirectory(prefix="bd-scale-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        data = Path(folder) / "data"
        service = LiveService(data, {"BUILDERD_DATABASE_URL": database} if database else {})
        try:
            service.start()
            with httpx.Client(timeout=60) as client:
                user = User(service, client)
                made = user.call("POST", "/builders", 201, json=body("first", BARE))
                user.call("POST", f"/builders/{made['uuid']}/stop", 200)
                service.terminate()
                copy_builder(database or f"sqlite:///{data}/builderd.db", number)
            # Puts the routes of the copies, once: the proxy keeps them from here on.
            service.start()
            service.terminate()
            kind = "postgresql" if database else "sqlite"
            return {"builders": number, "database": kind, **measure_service(service, made, rounds)}
        finally:
            service.down()


def measure_service(service: LiveService, made: Row, rounds: int) -> Row:
    begun = time.monotonic()
    service.start()
    ready = time.monotonic()
    before = cpu_seconds(service)
    found: Row = {"service start, s": ready - begun, "CPU of start, s": before}
    with httpx.Client(timeout=60) as client:
        user = User(service, client)
        found["first create, s"] = create(user) / 1000
        time.sleep(max(ready + CPU_SPAN - time.monotonic(), 0))
        found["CPU in 30 s, s"] = cpu_seconds(service) - before
        start_and_visit(user, made)
        with cpu_of(service, found, "start and stop", rounds):
            found["start, ms"] = statistics.median(start_and_visit(user, made) for _ in range(rounds))
        with cpu_of(service, found, "create and delete", rounds):
            found["create, ms"] = statistics.median(create(user) for _ in range(rounds))
        with cpu_of(service, found, "spending", 10):
            found["spending, ms"] = statistics.median(spans(10, lambda: user.call("GET", "/builders/spending", 200)))
        with cpu_of(service, found, "list", LISTS), RawClient(service) as raw:
            listed = spans(LISTS, lambda: raw.get("/api/v1/builders?per_page=100"))
        found["list, p50 ms"], found["list, p99 ms"] = listed[LISTS // 2], listed[LISTS * 99 // 100 - 1]
        idle = cpu_seconds(service)
        time.sleep(10)
        found["CPU of 10 idle s, s"] = cpu_seconds(service) - idle
    return found


class RawClient:
    """Client on one connection that only receives, so that a percentile is not that of a client's own work.

    httpx takes 1.2 ms of CPU to read a list of a hundred, this client 0.1: neither is time of the service.
    """

    def __init__(self, service: LiveService) -> None:
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=60)
        self._head = f"HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {service.token}\r\n\r\n"
        self._buffer = bytearray(1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def get(self, path: str) -> None:
        """Receive the whole answer, which must be a 200 with a Content-Length."""
        self._socket.sendall(f"GET {path} {self._head}".encode())
        room, received, whole = memoryview(self._buffer), 0, len(self._buffer)
        while received < whole:
            more = self._socket.recv_into(room[received:])
            assert more, "the connection was closed within an answer"
            received += more
            if whole == len(self._buffer) and (end := self._buffer.find(b"\r\n\r\n", 0, received)) >= 0:
                head = bytes(self._buffer[:end]).lower()
                assert head.startswith(b"http/1.1 200"), head
                whole = end + 4 + int(head.partition(b"content-length:")[2].split()[0])


def create(user: User) -> float:
    """Return the milliseconds of a create call; then delete the builder."""
    begun = time.perf_counter()
    data = user.call("POST", "/builders", 201, json=body("more", BARE))
    spent = 1000 * (time.perf_counter() - begun)
    user.call("DELETE", f"/builders/{data['uuid']}", 200)
    return spent


def start_and_visit(user: User, made: Row) -> float:
    """Return the milliseconds from the start call to the app's first answer; then stop the app."""
    begun = time.perf_counter()
    user.call("POST", f"/builders/{made['uuid']}/start", 200)
    user.visit(made)
    spent = 1000 * (time.perf_counter() - begun)
    user.call("POST", f"/builders/{made['uuid']}/stop", 200)
    return spent


def spans(number: int, call: Callable[[], object]) -> list[float]:
    """Return the milliseconds of each call, sorted."""
    found = []
    for _ in range(number):
        begun = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - begun))
    return sorted(found)


def cpu_seconds(service: LiveService) -> float:
    """Return the CPU time of the service's own process (proc(5), utime and stime)."""
    assert service.process is not None
    fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


@contextmanager
def cpu_of(service: LiveService, found: Row, name: str, number: int) -> Iterator[None]:
    """Note the service's CPU time of each of so many calls, what its background jobs took meanwhile included."""
    before = cpu_seconds(service)
    yield
    found[f"{name}, CPU ms"] = 1000 * (cpu_seconds(service) - before) / number


def table(results: Sequence[Row]) -> str:
    """Return the table of BENCHMARKS.md: a column for each run, milliseconds beside the CPU time of the service."""
    heads = [f"{NAMES[result['database']]}: {result['builders']:,}" for result in results]
    lines = [f"| what | {' | '.join(heads)} | goal | met |", "|---" * (len(results) + 3) + "|"]
    for title, cell, goal, limit in ROWS:
        cells = [cell(result, _fewest(result, results)) for result in results]
        met = ""
        if limit is not None:
            met = "yes" if all(limit(result, _fewest(result, results)) for result in results) else "**no**"
        lines.append(f"| {title} | {' | '.join(cells)} | {goal} | {met} |")
    return "\n".join(lines)


def _fewest(result: Row, results: Sequence[Row]) -> Row:
    """Return the run on the same database with the fewest builders."""
    return min((one for one in results if one["database"] == result["database"]), key=lambda one: one["builders"])


def _seconds(name: str) -> Callable[[Row, Row], str]:
    return lambda result, _: f"{result[name]:.1f}"


def _ms(wall: str, cpu: str) -> Callable[[Row, Row], str]:
    return lambda result, _: f"{result[wall]:.0f} ({result[cpu]:.0f})"


def _ratio(wall: str, cpu: str) -> Callable[[Row, Row], str]:
    """Return the cell of a figure that may not grow, with its ratio to that of the fewest builders."""

    def cell(result: Row, fewest: Row) -> str:
        ratios = (
            "" if result is fewest else f", {result[wall] / fewest[wall]:.2f} x ({result[cpu] / fewest[cpu]:.2f} x)"
        )
        return f"{result[wall]:.0f} ({result[cpu]:.0f}){ratios}"

    return cell


def _at_most(name: str, most: float) -> Callable[[Row, Row], bool]:
    return lambda result, _: bool(result[name] <= most)


def _grows_by(name: str, most: float) -> Callable[[Row, Row], bool]:
    return lambda result, fewest: bool(result[name] <= most * fewest[name])


NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
#: Title, cell, goal as text, and whether a run meets it.
ROWS: Sequence[tuple[str, Callable[[Row, Row], str], str, Callable[[Row, Row], bool] | None]] = (
    (
        "service start, s (CPU, s)",
        lambda one, _: f"{one['service start, s']:.1f} ({one['CPU of start, s']:.1f})",
        "",
        None,
    ),
    ("first create → 201 after ready, s", _seconds("first create, s"), "≤ 1.5", _at_most("first create, s", 1.5)),
    ("CPU in the 30 s after ready, s", _seconds("CPU in 30 s, s"), "≤ 3", _at_most("CPU in 30 s, s", 3)),
    ("CPU of 10 idle s, s", _seconds("CPU of 10 idle s, s"), "", None),
    (
        "start → 200, ms (start and stop, CPU ms)",
        _ratio("start, ms", "start and stop, CPU ms"),
        "≤ 1.1 x",
        _grows_by("start, ms", 1.1),
    ),
    (
        "create → 201, ms (create and delete, CPU ms)",
        _ratio("create, ms", "create and delete, CPU ms"),
        "≤ 1.1 x",
        _grows_by("create, ms", 1.1),
    ),
    (
        "`GET /builders/spending`, ms (CPU ms)",
        _ms("spending, ms", "spending, CPU ms"),
        "≤ 100",
        _at_most("spending, ms", 100),
    ),
    ("list of 100: p50, ms (CPU ms)", _ms("list, p50 ms", "list, CPU ms"), "", None),
    ("list of 100: p99, ms", lambda one, _: f"{one['list, p99 ms']:.0f}", "≤ 15", _at_most("list, p99 ms", 15)),
)


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a database on a server of its own."""
    binaries = find_binaries()
    if binaries is None:
        sys.exit("PostgreSQL is not installed: apt-get install postgresql")
    with run_server(binaries) as server, server.database() as url:
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", "--builders", default="5,10000", help="numbers of stopped builders, one run for each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--database", default="sqlite", help="sqlite, postgresql, or both with a comma between")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    for kind in options.database.split(","):
        for number in options.rows.split(","):
            with postgres() if kind == "postgresql" else nullcontext() as database:
                results.append(measure(int(number), options.rounds, database))
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(f"load {os.getloadavg()[0]:.1f}, {options.rounds} rounds, {LISTS} lists\n")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
