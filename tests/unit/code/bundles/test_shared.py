"""Services that share a database have each other's bundles, whatever lies in their folders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.contract.store.samples import TENANT, add, make_builder, make_version
from tests.stores import memory_store

from builderd.code.bundles.local import LocalBundles
from builderd.code.bundles.shared import SharedBundles
from builderd.code.model import Alteration, ArchiveLimits, Bundle, BundleFile, make_bundle
from builderd.code.store import CHUNK_BYTES, StoredBundles
from builderd.core.errors import StoreUnavailable
from builderd.database.unit_of_work import Store

#: Three chunks, which cannot be mistaken for one another.
LARGE = make_bundle([BundleFile("data.bin", bytes(n % 251 for n in range(2 * CHUNK_BYTES + 12_345)))])
SMALL = make_bundle([BundleFile("main.py", b"print('hello')\n")])


@dataclass(frozen=True)
class Services:
    """Two services with a folder each, on one database."""

    store: Store
    folder: Path
    one: SharedBundles
    two: SharedBundles

    def file(self, service: str, bundle: Bundle) -> Path:
        return self.folder / service / f"{bundle.hash}.tar"


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    async with memory_store() as store:
        await store.write(lambda uow: uow.tenants.add(TENANT))
        one, two = (SharedBundles(store, LocalBundles(tmp_path / name)) for name in ("one", "two"))
        yield Services(store, tmp_path, one, two)


async def use(services: Services, bundle: Bundle) -> None:
    builder = make_builder()
    await add(services.store, builder, make_version(builder.id, bundle_hash=bundle.hash))


@pytest.mark.parametrize("bundle", [SMALL, LARGE, make_bundle([])])
async def test_bundle_of_one_service_is_read_and_kept_by_the_other(services: Services, bundle: Bundle) -> None:
    await services.one.put(bundle)
    assert await services.two.get(bundle.hash) == bundle
    assert services.file("two", bundle).read_bytes() == services.file("one", bundle).read_bytes()


async def test_code_of_the_other_service_is_altered(services: Services) -> None:
    await services.one.put(SMALL)
    wanted = make_bundle([*SMALL.files, BundleFile("new", b"1")])
    alteration = Alteration((BundleFile("new", b"1"),), (), wanted.hash)
    assert await services.two.alter(SMALL.hash, alteration, ArchiveLimits()) == wanted
    await services.two.put(wanted)
    assert await services.one.get(wanted.hash) == wanted


async def test_damaged_file_is_replaced_from_the_database(services: Services) -> None:
    await services.one.put(SMALL)
    file = services.file("one", SMALL)
    file.write_bytes(file.read_bytes().replace(b"hello", b"evil!"))
    assert await services.one.get(SMALL.hash) == SMALL
    assert b"hello" in file.read_bytes()


@pytest.mark.parametrize("content", [b"", b"x" * CHUNK_BYTES])
async def test_damaged_chunk_is_noticed_and_a_deployment_mends_it(services: Services, content: bytes) -> None:
    await services.one.put(LARGE)
    await services.store.write(lambda uow: uow.stored_bundles.put_chunk(LARGE.hash, 1, content))
    with pytest.raises(KeyError):
        await services.two.get(LARGE.hash)
    assert not services.file("two", LARGE).exists()
    await services.one.put(LARGE)
    assert await services.two.get(LARGE.hash) == LARGE


async def test_copy_that_broke_off_is_no_bundle_is_swept_and_can_be_repeated(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_chunk = StoredBundles.put_chunk

    def fail_at_second(self: StoredBundles, bundle_hash: str, number: int, content: bytes) -> None:
        if number == 1:
            raise StoreUnavailable("The database does not answer.")
        put_chunk(self, bundle_hash, number, content)

    with monkeypatch.context() as patch:
        patch.setattr(StoredBundles, "put_chunk", fail_at_second)
        with pytest.raises(StoreUnavailable):
            await services.one.put(LARGE)
    with pytest.raises(KeyError):
        await services.two.get(LARGE.hash)
    assert set(await services.two.hashes()) == {LARGE.hash}
    await services.one.put(LARGE)
    assert await services.two.get(LARGE.hash) == LARGE


async def test_deleted_bundle_is_gone_for_the_other_service(services: Services) -> None:
    await services.one.put(LARGE)
    await services.one.delete(LARGE.hash)
    with pytest.raises(KeyError):
        await services.two.get(LARGE.hash)
    assert await services.store.read(lambda uow: uow.stored_bundles.chunk(LARGE.hash, 0)) is None


async def test_used_bundles_of_a_folder_are_copied_into_the_database(services: Services) -> None:
    for bundle in (SMALL, LARGE):
        await LocalBundles(services.folder / "one").put(bundle)
    await use(services, LARGE)
    await services.one.upload_used()
    assert await services.two.get(LARGE.hash) == LARGE
    with pytest.raises(KeyError):
        await services.two.get(SMALL.hash)


async def test_used_bundles_of_the_database_are_copied_into_a_folder(services: Services) -> None:
    for bundle in (SMALL, LARGE):
        await services.one.put(bundle)
    await use(services, SMALL)
    await services.two.download_used()
    assert services.file("two", SMALL).exists()
    assert not services.file("two", LARGE).exists()
