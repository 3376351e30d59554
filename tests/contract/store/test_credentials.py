"""Credentials as every store keeps them."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, TENANT
from tests.stores import open_store

from builderd.domain.credentials import Credential
from builderd.domain.ids import BuilderId, new_id
from builderd.store import Store, UnitOfWork

ZOHO = Credential(TENANT.id, "zoho", ("API_KEY", "A"), bytes(range(256)), created_at=NOW, updated_at=NOW)
USED = replace(ZOHO, sealed=b"\0new", updated_at=NOW + SECOND, last_used_at=NOW, last_used_by=BuilderId(new_id()))


async def test_every_field_is_kept(store: Store) -> None:
    await store.write(lambda uow: uow.credentials.add(ZOHO))
    assert await store.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == ZOHO
    await store.write(lambda uow: uow.credentials.save(USED))
    assert await store.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == USED


async def test_recording_a_use_writes_only_that(store: Store) -> None:
    """A start may be under way while the secret is changed."""
    by = BuilderId(new_id())
    await store.write(lambda uow: uow.credentials.add(USED))
    await store.write(lambda uow: uow.credentials.touch(TENANT.id, "zoho", NOW + SECOND, by))
    touched = replace(USED, last_used_at=NOW + SECOND, last_used_by=by)
    assert await store.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == touched
    await store.write(lambda uow: uow.credentials.touch(TENANT.id, "gone", NOW, by))


async def test_resealing_loses_no_concurrent_change(shared_url: str) -> None:
    changed = replace(ZOHO, sealed=b"changed")
    read, waits = threading.Event(), threading.Event()

    def reseal(uow: UnitOfWork) -> None:
        (found,) = uow.credentials.all()
        read.set()
        waits.wait(0.3)  # the other is held by the database, and cannot say so
        uow.credentials.save(replace(found, sealed=b"sealed anew"))

    def change(uow: UnitOfWork) -> None:
        uow.credentials.save(changed)
        waits.set()

    async with open_store(shared_url) as one, open_store(shared_url) as other:
        await one.write(lambda uow: uow.tenants.add(TENANT))
        await one.write(lambda uow: uow.credentials.add(ZOHO))
        sealing = asyncio.create_task(one.write(reseal))
        await asyncio.to_thread(read.wait)
        await asyncio.gather(sealing, other.write(change))
        assert await one.read(lambda uow: uow.credentials.get(TENANT.id, "zoho")) == changed
