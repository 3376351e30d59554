"""What a unit of work costs: the store beside Python's own sqlite3 that runs the like statements by hand.

    python benchmarks/store.py [--url postgresql://…] [--rounds 2000]

Without a URL: SQLite in a temporary file. The last line of sqlite3 is the reference of the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from builderd.domain.builders import Builder, JobType, Visibility
from builderd.domain.events import Event
from builderd.domain.ids import BuilderId, DiskId, TenantId, new_id
from builderd.domain.tenants import Tenant
from builderd.domain.versions import Version, VersionSettings
from builderd.store import Store, UnitOfWork

NOW = datetime.now(UTC)
LEASE = timedelta(seconds=30)
WARM_UP = 100
Call = Callable[[], Awaitable[object]]


async def measure(call: Call, rounds: int) -> list[float]:
    """Milliseconds of each call, sorted."""
    for _ in range(WARM_UP):
        await call()
    spans = []
    for _ in range(rounds):
        start = time.perf_counter()
        await call()
        spans.append((time.perf_counter() - start) * 1000)
    return sorted(spans)


def new_builder(tenant: Tenant) -> Builder:
    builder_id = BuilderId(new_id())
    return Builder(
        id=builder_id,
        tenant_id=tenant.id,
        name=f"app-{builder_id}",
        job_type=JobType.ALWAYS_ON,
        visibility=Visibility.PUBLIC,
        service_token=builder_id,
        host=builder_id,
        version=1,
        disk=DiskId(new_id()),
        created_at=NOW,
        updated_at=NOW,
    )


def create(uow: UnitOfWork, tenant: Tenant) -> Builder:
    """Four writes and a look for the name."""
    builder = new_builder(tenant)
    uow.builders.add(builder)
    uow.versions.add(Version(builder.id, 1, "a" * 64, VersionSettings("python3 main.py"), "token ci", NOW))
    uow.events.add(Event(tenant.id, builder.id, NOW, "builder.created", "token ci", "created"))
    uow.builders.make_due(builder.id, NOW)
    return builder


def record(uow: UnitOfWork, builder_id: BuilderId) -> None:
    """What the reconciler does after each step: one look and two writes."""
    builder = uow.builders.get_held(builder_id, "one", NOW)
    assert builder is not None
    uow.events.add(Event(builder.tenant_id, builder_id, NOW, "stage.finished", "system", "start", {"ok": True}))
    uow.builders.save(replace(builder, status_reason="started"))


def record_by_hand(connection: sqlite3.Connection, tenant: str, builder: str) -> None:
    now = str(NOW)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("SELECT * FROM builders WHERE id = ?", (builder,)).fetchone()
    connection.execute("SELECT 1 FROM builders WHERE id = ? AND claimed_until > ?", (builder, now)).fetchone()
    connection.execute(
        "INSERT INTO events (tenant_id, builder_id, time, type, actor, reason, details) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (tenant, builder, now, "stage.finished", "system", "start", '{"ok":true}'),
    )
    connection.execute("UPDATE builders SET status_reason = ?, updated_at = ? WHERE id = ?", ("started", now, builder))
    connection.execute("COMMIT")


async def measure_by_hand(folder: Path, rounds: int) -> list[float]:
    store, tenant = Store(f"sqlite:///{folder}/hand.db"), Tenant(TenantId(new_id()), "bench", NOW)
    await store.migrate()
    await store.write(lambda uow: uow.tenants.add(tenant))
    builder = await store.write(lambda uow: create(uow, tenant))
    await store.close()
    connection = sqlite3.connect(folder / "hand.db", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        spans = await measure(
            lambda: loop.run_in_executor(thread, record_by_hand, connection, tenant.id, builder.id), rounds
        )
    connection.close()
    return spans


async def measure_store(url: str, rounds: int) -> dict[str, list[float]]:
    store, tenant = Store(url), Tenant(TenantId(new_id()), f"bench-{new_id()[:8]}", NOW)
    await store.migrate()
    await store.write(lambda uow: uow.tenants.add(tenant))
    builder = await store.write(lambda uow: create(uow, tenant))
    await store.write(lambda uow: uow.builders.claim(builder.id, "one", NOW, NOW + LEASE))
    calls: dict[str, Call] = {
        "read nothing": lambda: store.read(lambda _: None),
        "read a builder": lambda: store.read(lambda uow: uow.builders.get(builder.id)),
        "write nothing": lambda: store.write(lambda _: None),
        "renew a claim": lambda: store.write(lambda uow: uow.builders.claim(builder.id, "one", NOW, NOW + LEASE)),
        "record a step": lambda: store.write(lambda uow: record(uow, builder.id)),
        "create a builder": lambda: store.write(lambda uow: create(uow, tenant)),
    }
    spans = {name: await measure(call, rounds) for name, call in calls.items()}
    await store.close()
    return spans


async def main(url: str | None, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spans = await measure_store(url or f"sqlite:///{folder}/store.db", rounds)
        by_hand = await measure_by_hand(Path(folder), rounds)
    reference = by_hand[rounds // 2]
    print(f"{'':<34}{'p50 ms':>8}{'p99 ms':>8}{'ratio':>8}")
    for name, span in {**spans, "record a step, by hand on sqlite3": by_hand}.items():
        p50, p99 = span[rounds // 2], span[rounds * 99 // 100]
        print(f"{name:<34}{p50:>8.3f}{p99:>8.3f}{p50 / reference:>8.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=2000)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.url, arguments.rounds))
