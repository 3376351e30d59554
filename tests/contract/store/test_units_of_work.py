"""Units of work: all of one or nothing of it, each on one consistent state."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from decimal import Decimal

import pytest
from tests.contract.store.samples import NOW, SECOND, TENANT, add, add_builder, make_event

from builderd.builders.model import Candidate, Cause
from builderd.core.ids import DiskId, TenantId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.money.model import Billing, Segment
from builderd.tokens.model import Tenant


class Refused(Exception):
    pass


async def test_exception_rolls_back_and_is_raised(store: Store) -> None:
    builder = await add_builder(store)

    def fail(uow: UnitOfWork) -> None:
        uow.tenants.add(Tenant(TenantId(new_id()), "never", NOW))
        uow.events.add(make_event(builder.id))
        raise Refused("no")

    with pytest.raises(Refused, match="no"):
        await store.write(fail)
    assert await store.read(lambda uow: uow.tenants.by_name("never")) is None
    assert await store.read(lambda uow: uow.events.of_builder(builder.id)) == []


async def test_saved_values_read_the_same_within_their_unit_of_work_as_afterwards(store: Store) -> None:
    """Locked builders, versions and open segments are remembered within a transaction."""
    builder = await add_builder(store)

    def look(uow: UnitOfWork) -> tuple[object, ...]:
        return (
            uow.builders.get(builder.id),
            uow.builders.get(builder.id, lock=True),
            uow.versions.get(builder.id, 1),
            uow.ledger.current(builder.id),
        )

    def write(uow: UnitOfWork) -> list[tuple[object, ...]]:
        begun = Segment(TENANT.id, builder.id, Billing.STOPPED, NOW, None, Decimal("0.0000231"))
        looks = [look(uow)]
        for number in range(2):
            locked, version = uow.builders.get(builder.id, lock=True), uow.versions.get(builder.id, 1)
            assert locked is not None
            assert version is not None
            candidate = Candidate(2, DiskId(new_id()), opens=True) if number else None
            cause = Cause("token ci", f"change {number}")
            uow.builders.save(replace(locked, cause=cause, candidate=candidate, spare_disks=(locked.disk,) * number))
            uow.versions.save(replace(version, layer_key=f"{number}", review_passed=bool(number)))
            uow.ledger.close(builder.id, NOW + SECOND)
            looks.append(look(uow))
            uow.ledger.open(replace(begun, start=NOW + number * SECOND))
            looks.append(look(uow))
        return looks

    looks = await store.write(write)
    assert len({str(one) for one in looks}) == len(looks)
    with pytest.raises(Exception, match=r"(?i)read.?only|unlocked|cannot execute"):
        await store.read(lambda uow: uow.builders.save(builder))
    after = await store.read(
        lambda uow: (uow.builders.get(builder.id), uow.versions.get(builder.id, 1), uow.ledger.current(builder.id))
    )
    assert looks[-1] == (after[0], *after)


async def test_read_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match=r"(?i)read.?only"):
        await store.read(lambda uow: uow.tenants.add(Tenant(TenantId(new_id()), "sly", NOW)))
    assert await store.read(lambda uow: uow.tenants.by_name("sly")) is None
    await add(store, Tenant(TenantId(new_id()), "fair", NOW))


async def test_concurrent_writes_lose_nothing(store: Store) -> None:
    builder = await add_builder(store)
    await asyncio.gather(*(store.write(lambda uow: uow.events.add(make_event(builder.id))) for _ in range(50)))
    assert len(await store.read(lambda uow: uow.events.of_builder(builder.id))) == 50


async def test_cancelled_caller_continues_after_the_commit(store: Store) -> None:
    begun, tenant = threading.Event(), Tenant(TenantId(new_id()), "late", NOW)

    def write_slowly(uow: UnitOfWork) -> None:
        begun.set()
        time.sleep(0.05)
        uow.tenants.add(tenant)

    task = asyncio.ensure_future(store.write(write_slowly))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.read(lambda uow: uow.tenants.get(tenant.id)) == tenant


async def test_queued_write_of_a_cancelled_caller_is_committed(store: Store) -> None:
    begun, tenant = threading.Event(), Tenant(TenantId(new_id()), "late", NOW)

    def tarry(_: UnitOfWork) -> None:
        begun.set()
        time.sleep(0.05)

    # More than any store has writers.
    others = [asyncio.ensure_future(store.write(tarry)) for _ in range(40)]
    await asyncio.to_thread(begun.wait)
    task = asyncio.ensure_future(store.write(lambda uow: uow.tenants.add(tenant)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.read(lambda uow: uow.tenants.get(tenant.id)) == tenant
    await asyncio.gather(*others)
