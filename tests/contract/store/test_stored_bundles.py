"""Bundles in the database: chunks that become a bundle once they are complete."""

from __future__ import annotations

from builderd.store import Store

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
