"""Uploads in the store, and the chunks of uploads and bundles."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.contract.store.samples import NOW, TENANT

from builderd.core.ids import UploadId, new_id
from builderd.database.unit_of_work import Store
from builderd.files.model import LIFETIME, Upload

ONE = Upload(UploadId("u1"), TENANT.id, "h1", NOW, NOW + timedelta(hours=1), size=2**40, sha256="ab")
TWO = replace(ONE, id=UploadId("u2"), created_at=NOW + timedelta(1), expires_at=NOW + timedelta(2), size=None)


async def test_upload_is_stored_and_changed(store: Store) -> None:
    await store.write(lambda uow: uow.uploads.add(ONE))
    assert await store.read(lambda uow: uow.uploads.get(ONE.id)) == ONE
    assert await store.write(lambda uow: uow.uploads.update(replace(ONE, complete=True)))
    assert await store.read(lambda uow: uow.uploads.get(ONE.id)) == replace(ONE, complete=True)
    assert not await store.write(lambda uow: uow.uploads.update(TWO))
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


STORED, OTHER_STORED = UploadId(new_id()), UploadId(new_id())


async def put(store: Store, upload: UploadId, number: int, content: bytes) -> int:
    return await store.write(lambda uow: uow.stored_uploads.put_last(upload, number, content))


async def chunks(store: Store, upload: UploadId) -> list[bytes | None]:
    return [await store.read(lambda uow, n=n: uow.stored_uploads.chunk(upload, n)) for n in range(3)]  # type: ignore[misc]


async def test_chunks_are_stored_one_after_the_other(store: Store) -> None:
    assert await store.read(lambda uow: uow.stored_uploads.size(STORED)) == 0
    for number, content in enumerate((b"first\x00", b"\xffsecond")):
        assert await put(store, STORED, number, content) == len(content)
    await put(store, OTHER_STORED, 0, b"other")
    assert await chunks(store, STORED) == [b"first\x00", b"\xffsecond", None]
    assert await store.read(lambda uow: uow.stored_uploads.size(STORED)) == 13
    assert await store.read(lambda uow: uow.stored_uploads.of_tenants()) == {None: 18}
    assert set(await store.read(lambda uow: uow.stored_uploads.ids())) == {STORED, OTHER_STORED}


async def test_bytes_are_counted_by_tenant(store: Store) -> None:
    record = Upload(STORED, TENANT.id, "h1", NOW, NOW + LIFETIME)
    await store.write(lambda uow: uow.uploads.add(record))
    for number in range(2):
        await put(store, STORED, number, b"mine")
    await put(store, OTHER_STORED, 0, b"no one's")
    for _ in range(2):
        assert await store.read(lambda uow: uow.stored_uploads.of_tenants()) == {TENANT.id: 8, None: 8}


async def test_chunk_that_is_put_again_is_the_last_one(store: Store) -> None:
    for number in range(3):
        await put(store, STORED, number, b"old")
    assert await put(store, STORED, 1, b"new!") == 4 - 6
    assert await chunks(store, STORED) == [b"old", b"new!", None]
    assert await put(store, STORED, 1, b"") == -4
    assert await chunks(store, STORED) == [b"old", None, None]


async def test_deleted_upload_leaves_the_others(store: Store) -> None:
    await put(store, STORED, 0, b"x")
    await put(store, OTHER_STORED, 0, b"x")
    for _ in range(2):
        await store.write(lambda uow: uow.stored_uploads.delete(STORED))
    assert await store.read(lambda uow: uow.stored_uploads.ids()) == {OTHER_STORED}
    assert await store.read(lambda uow: uow.stored_uploads.size(STORED)) == 0


HASH, OTHER = "a" * 64, "b" * 64


async def test_chunks_are_a_bundle_once_they_are_complete(store: Store) -> None:
    for number, content in enumerate((b"first\x00", b"\xffsecond")):
        await store.write(lambda uow, n=number, c=content: uow.stored_bundles.put_chunk(HASH, n, c))  # type: ignore[misc]
    await store.write(lambda uow: uow.stored_bundles.put_chunk(OTHER, 0, b"cut off"))
    assert await store.read(lambda uow: uow.stored_bundles.size(HASH)) is None
    for _ in range(2):
        await store.write(lambda uow: uow.stored_bundles.complete(HASH, 13))
    assert await store.read(lambda uow: uow.stored_bundles.size(HASH)) == 13
    assert await store.read(lambda uow: uow.stored_bundles.chunk(HASH, 0)) == b"first\x00"
    assert await store.read(lambda uow: uow.stored_bundles.chunk(HASH, 1)) == b"\xffsecond"
    assert await store.read(lambda uow: uow.stored_bundles.chunk(HASH, 2)) is None
    assert await store.read(lambda uow: uow.stored_bundles.sizes()) == {HASH: 13}
    assert set(await store.read(lambda uow: uow.stored_bundles.hashes())) == {HASH, OTHER}


async def test_chunk_is_replaced(store: Store) -> None:
    for content in (b"one", b"two"):
        await store.write(lambda uow, c=content: uow.stored_bundles.put_chunk(HASH, 0, c))  # type: ignore[misc]
    assert await store.read(lambda uow: uow.stored_bundles.chunk(HASH, 0)) == b"two"


async def test_deleted_bundle_leaves_nothing_and_others_stay(store: Store) -> None:
    for name in (HASH, OTHER):
        await store.write(lambda uow, n=name: uow.stored_bundles.put_chunk(n, 0, b"x"))  # type: ignore[misc]
        await store.write(lambda uow, n=name: uow.stored_bundles.complete(n, 1))  # type: ignore[misc]
    for _ in range(2):
        await store.write(lambda uow: uow.stored_bundles.delete(HASH))
    assert await store.read(lambda uow: uow.stored_bundles.hashes()) == {OTHER}
    assert await store.read(lambda uow: uow.stored_bundles.chunk(HASH, 0)) is None
