"""Bytes of uploads in the store: chunk by chunk, cut where a part is sent again."""

from __future__ import annotations

from tests.contract.store.samples import NOW, TENANT

from builderd.domain.files import LIFETIME, Upload
from builderd.domain.ids import UploadId, new_id
from builderd.store import Store

ONE, OTHER = UploadId(new_id()), UploadId(new_id())


async def put(store: Store, upload: UploadId, number: int, content: bytes) -> int:
    return await store.write(lambda uow: uow.stored_uploads.put_last(upload, number, content))


async def chunks(store: Store, upload: UploadId) -> list[bytes | None]:
    return [await store.read(lambda uow, n=n: uow.stored_uploads.chunk(upload, n)) for n in range(3)]  # type: ignore[misc]


async def test_chunks_are_stored_one_after_the_other(store: Store) -> None:
    assert await store.read(lambda uow: uow.stored_uploads.size(ONE)) == 0
    for number, content in enumerate((b"first\x00", b"\xffsecond")):
        assert await put(store, ONE, number, content) == len(content)
    await put(store, OTHER, 0, b"other")
    assert await chunks(store, ONE) == [b"first\x00", b"\xffsecond", None]
    assert await store.read(lambda uow: uow.stored_uploads.size(ONE)) == 13
    assert await store.read(lambda uow: uow.stored_uploads.of_tenants()) == {None: 18}
    assert set(await store.read(lambda uow: uow.stored_uploads.ids())) == {ONE, OTHER}


async def test_bytes_are_counted_by_tenant(store: Store) -> None:
    record = Upload(ONE, TENANT.id, "h1", NOW, NOW + LIFETIME)
    await store.write(lambda uow: uow.uploads.add(record))
    for number in range(2):
        await put(store, ONE, number, b"mine")
    await put(store, OTHER, 0, b"no one's")
    for _ in range(2):
        assert await store.read(lambda uow: uow.stored_uploads.of_tenants()) == {TENANT.id: 8, None: 8}


async def test_chunk_that_is_put_again_is_the_last_one(store: Store) -> None:
    for number in range(3):
        await put(store, ONE, number, b"old")
    assert await put(store, ONE, 1, b"new!") == 4 - 6
    assert await chunks(store, ONE) == [b"old", b"new!", None]
    assert await put(store, ONE, 1, b"") == -4
    assert await chunks(store, ONE) == [b"old", None, None]


async def test_deleted_upload_leaves_the_others(store: Store) -> None:
    await put(store, ONE, 0, b"x")
    await put(store, OTHER, 0, b"x")
    for _ in range(2):
        await store.write(lambda uow: uow.stored_uploads.delete(ONE))
    assert await store.read(lambda uow: uow.stored_uploads.ids()) == {OTHER}
    assert await store.read(lambda uow: uow.stored_uploads.size(ONE)) == 0
