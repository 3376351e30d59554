"""Uploads in the database: another service goes on where this one was killed, and an old file counts for nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.stores import memory_store

from builderd.code import upload_store as module
from builderd.code.upload_store import SharedUploads
from builderd.core.errors import NoCapacity, QuotaExceeded, StoreUnavailable
from builderd.core.ids import TenantId, UploadId, new_id
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.files.model import LIFETIME, Upload
from builderd.tokens.model import Tenant

ONE, OTHER = UploadId(new_id()), UploadId(new_id())
#: Of a chunk, in place of a MiB.
CHUNK = 10
LIMIT = 1000
NOW = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPLOAD_CHUNK_BYTES", CHUNK)


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with memory_store() as store:
        yield store


def service(store: Store, folder: Path, most_bytes: int = LIMIT, share: float = 1.0) -> SharedUploads:
    """Return the uploads of a service, as after its start."""
    return SharedUploads(store, folder, most_bytes, share)


async def total(store: Store) -> int:
    return sum((await store.read(lambda uow: uow.stored_uploads.of_tenants())).values())


async def upload_of(store: Store, name: str) -> UploadId:
    """Return an upload of a new tenant."""
    tenant, upload = Tenant(TenantId(new_id()), name, NOW), UploadId(new_id())
    record = Upload(upload, tenant.id, upload, NOW, NOW + LIFETIME)

    def add(uow: UnitOfWork) -> None:
        uow.tenants.add(tenant)
        uow.uploads.add(record)

    await store.write(add)
    return upload


async def pieces(content: bytes, size: int = 4) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def read(uploads: SharedUploads) -> bytes:
    with await uploads.open(ONE) as file:
        return file.read()


async def test_another_service_goes_on_where_a_request_ended(store: Store, tmp_path: Path) -> None:
    content = bytes(range(47))
    assert await service(store, tmp_path / "one").write(ONE, 0, pieces(content[:23]), LIMIT) == 23
    two = service(store, tmp_path / "two")
    assert await two.size(ONE) == 23
    assert await two.write(ONE, 23, pieces(content[23:]), LIMIT) == 47
    three = service(store, tmp_path / "three")
    assert await read(three) == content
    assert await service(store, tmp_path / "four").sha256(ONE) == hashlib.sha256(content).hexdigest()


async def test_whole_chunks_outlive_a_kill_in_the_middle_of_a_request(store: Store, tmp_path: Path) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        async for piece in pieces(bytes(25)):
            yield piece
        begun.set()
        await never.wait()

    killed = asyncio.create_task(service(store, tmp_path / "one").write(ONE, 0, endless(), LIMIT))
    await begun.wait()
    two = service(store, tmp_path / "two")
    assert await two.size(ONE) == 20
    assert await two.write(ONE, 20, pieces(b"rest"), LIMIT) == 24
    assert await read(two) == bytes(20) + b"rest"
    killed.cancel()
    await asyncio.wait({killed})


async def test_request_that_breaks_off_is_stored_to_its_last_byte(store: Store, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for piece in pieces(bytes(25)):
            yield piece
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await service(store, tmp_path / "one").write(ONE, 0, broken(), LIMIT)
    assert await service(store, tmp_path / "two").size(ONE) == 25


@pytest.mark.parametrize("start", [0, 3, 10, 12, 20, 25])
async def test_part_that_is_sent_again_replaces_all_later_bytes(store: Store, tmp_path: Path, start: int) -> None:
    one = service(store, tmp_path / "one")
    await one.write(ONE, 0, pieces(b"a" * 25), LIMIT)
    assert await one.write(ONE, start, pieces(b"b" * 2), LIMIT) == start + 2
    assert await service(store, tmp_path / "two").size(ONE) == start + 2
    assert await read(service(store, tmp_path / "three")) == b"a" * start + b"bb"


async def test_uploads_together_have_a_limit_in_the_database(store: Store, tmp_path: Path) -> None:
    one = service(store, tmp_path / "one", most_bytes=40)
    await one.write(OTHER, 0, pieces(bytes(25)), LIMIT)
    with pytest.raises(NoCapacity, match=r"limits\.stored_code"):
        await one.write(ONE, 0, pieces(bytes(100)), LIMIT)
    assert await total(store) <= 40
    await one.delete(OTHER)
    await one.delete(ONE)
    assert await one.write(ONE, 0, pieces(bytes(40)), LIMIT) == 40
    # Sent again and again, it counts once.
    for _ in range(5):
        assert await one.write(ONE, 20, pieces(bytes(20)), LIMIT) == 40


async def test_uploads_at_the_same_time_keep_the_limit_too(store: Store, tmp_path: Path) -> None:
    one = service(store, tmp_path / "one", most_bytes=40)
    writes = (one.write(UploadId(new_id()), 0, pieces(bytes(30)), LIMIT) for _ in range(4))
    ends = await asyncio.gather(*writes, return_exceptions=True)
    assert any(isinstance(end, NoCapacity) for end in ends)
    assert 30 <= await total(store) <= 40


async def test_bytes_deleted_beside_a_write_are_free_again(store: Store, tmp_path: Path) -> None:
    one = service(store, tmp_path / "one", most_bytes=40)
    await one.write(OTHER, 0, pieces(bytes(30)), LIMIT)
    await asyncio.gather(one.write(ONE, 0, pieces(bytes(10)), LIMIT), one.delete(OTHER))
    assert await one.write(ONE, 10, pieces(bytes(30)), LIMIT) == 40


async def test_write_that_is_cut_off_in_the_database_counts_as_it_is_stored(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, write = service(store, tmp_path / "one", most_bytes=40), store.write

    async def lost(work: object) -> object:
        await write(work)  # type: ignore[arg-type]
        raise StoreUnavailable("The answer was lost.")

    monkeypatch.setattr(store, "write", lost)
    with pytest.raises(StoreUnavailable):
        await one.write(OTHER, 0, pieces(bytes(10)), LIMIT)
    monkeypatch.setattr(store, "write", write)
    with pytest.raises(NoCapacity):
        await one.write(ONE, 0, pieces(bytes(40)), LIMIT)
    assert await total(store) <= 40


async def test_one_of_several_tenants_leaves_space_for_the_others(store: Store, tmp_path: Path) -> None:
    one = service(store, tmp_path / "one", most_bytes=80, share=0.5)
    greedy = await upload_of(store, "greedy")
    assert await one.write(greedy, 0, pieces(bytes(50)), LIMIT) == 50, "a tenant alone has all of it"
    await one.delete(greedy)
    modest = await upload_of(store, "modest")
    with pytest.raises(QuotaExceeded, match="code_share"):
        await one.write(greedy, 0, pieces(bytes(50)), LIMIT)
    assert await total(store) == 40
    assert await one.write(modest, 0, pieces(bytes(20)), LIMIT) == 20


async def test_bytes_that_the_database_did_not_take_do_not_count(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, write = service(store, tmp_path / "one"), store.write
    await one.write(ONE, 0, pieces(b"a" * 15), LIMIT)
    writes = 0

    async def failing(work: object) -> object:
        nonlocal writes
        writes += 1
        if writes > 2:
            raise StoreUnavailable("The database does not answer.")
        return await write(work)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write", failing)
    with pytest.raises(StoreUnavailable):
        await one.write(ONE, 15, pieces(b"b" * 30), LIMIT)
    monkeypatch.setattr(store, "write", write)
    received = await one.size(ONE)
    assert received == await service(store, tmp_path / "two").size(ONE)
    assert await one.write(ONE, received, pieces(b"c"), LIMIT) == received + 1
    assert await read(service(store, tmp_path / "two")) == await read(one)


async def test_deleted_upload_is_gone_for_all_services(store: Store, tmp_path: Path) -> None:
    one, two = service(store, tmp_path / "one"), service(store, tmp_path / "two")
    await one.write(ONE, 0, pieces(bytes(25)), LIMIT)
    assert await two.ids() == {ONE}
    await two.delete(ONE)
    assert await two.ids() == set()
    with pytest.raises(KeyError):
        await service(store, tmp_path / "three").open(ONE)
