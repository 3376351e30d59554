"""The records of uploads."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.contract.store.samples import NOW, TENANT

from builderd.domain.files import Upload
from builderd.domain.ids import UploadId
from builderd.store import Store

ONE = Upload(UploadId("u1"), TENANT.id, "h1", NOW, NOW + timedelta(hours=1), size=2**40, sha256="ab")
TWO = replace(ONE, id=UploadId("u2"), created_at=NOW + timedelta(1), expires_at=NOW + timedelta(2), size=None)


async def test_upload_is_stored_and_changed(store: Store) -> None:
    await store.write(lambda uow: uow.uploads.add(ONE))
    assert await store.read(lambda uow: uow.uploads.get(ONE.id)) == ONE
    assert await store.write(lambda uow: uow.uploads.save(replace(ONE, complete=True)))
    assert await store.read(lambda uow: uow.uploads.get(ONE.id)) == replace(ONE, complete=True)
    assert not await store.write(lambda uow: uow.uploads.save(TWO))
    assert await store.read(lambda uow: uow.uploads.get(TWO.id)) is None


async def test_uploads_of_a_tenant_and_expired_ones_are_listed(store: Store) -> None:
    for upload in (TWO, ONE):
        await store.write(lambda uow, upload=upload: uow.uploads.add(upload))  # type: ignore[misc]
    assert await store.read(lambda uow: uow.uploads.of_tenant(TENANT.id)) == [ONE, TWO]
    assert await store.read(lambda uow: uow.uploads.expired(ONE.expires_at)) == [ONE.id]
    assert await store.read(lambda uow: uow.uploads.live(ONE.expires_at)) == [TWO.id]
    await store.write(lambda uow: uow.uploads.delete(ONE.id))
    await store.write(lambda uow: uow.uploads.delete(ONE.id))
    assert await store.read(lambda uow: uow.uploads.of_tenant(TENANT.id)) == [TWO]
