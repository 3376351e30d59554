"""The store of bundles that the settings choose, and backups of the state from one in the database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.contract.store.samples import TENANT, add, make_builder, make_version
from tests.stores import open_store

from builderd.adapters.bundles.local import LocalBundles
from builderd.adapters.bundles.shared import SharedBundles
from builderd.bootstrap import state
from builderd.bootstrap.bundles import bundle_sizes, is_shared, open_bundles
from builderd.bootstrap.machine import describe_code
from builderd.domain.bundles import BundleFile, make_bundle
from builderd.settings import Settings

BUNDLE = make_bundle([BundleFile("main.py", b"print('hello')\n")])
POSTGRESQL = "postgresql://builderd@db.example/builderd"


@pytest.mark.parametrize(
    ("given", "shared"),
    [
        ({}, False),
        ({"database_url": POSTGRESQL}, False),
        ({"engine": "incus"}, False),
        ({"engine": "incus", "database_url": POSTGRESQL}, True),
    ],
)
def test_bundles_are_shared_where_disks_and_database_are(given: dict[str, Any], shared: bool, tmp_path: Path) -> None:
    assert is_shared(Settings(data_dir=tmp_path, **given)) is shared


async def test_doctor_tells_when_little_is_left_for_code(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    async with open_store(settings.database):
        (line,) = await describe_code(settings)
        assert line.endswith("are free for more")
        full = settings.model_copy(update={"store": settings.store.model_copy(update={"floor": 1e9})})
        (line,) = await describe_code(full)
        assert "0.0 kB are free for more: nearly full. Its operator can free space" in line


@pytest.mark.postgres
@pytest.mark.slow
async def test_a_backup_on_any_machine_has_the_bundles_of_the_database(
    postgres_url: str, postgres_server: Any, tmp_path: Path
) -> None:
    def on(name: str, url: str) -> Settings:
        (tmp_path / name).mkdir(exist_ok=True)
        return Settings(data_dir=tmp_path / name, database_url=url, engine="incus")

    one, two = on("one", postgres_url), on("two", postgres_url)
    async with open_store(postgres_url) as store:
        await store.write(lambda uow: uow.tenants.add(TENANT))
        builder = make_builder()
        await add(store, builder, make_version(builder.id, bundle_hash=BUNDLE.hash))
        await LocalBundles(one.data_dir / "bundles").put(BUNDLE)
        assert isinstance(await open_bundles(one, store), SharedBundles)
        assert (await bundle_sizes(two, store)).keys() == {BUNDLE.hash}
    await asyncio.to_thread(state.back_up, two, tmp_path / "kept", None, print)
    assert (tmp_path / "kept/bundles" / f"{BUNDLE.hash}.tar").exists()
    with postgres_server.database() as other:
        restored, beside = on("restored", other), on("beside", other)
        await asyncio.to_thread(state.restore, restored, tmp_path / "kept", None, print)
        async with open_store(other) as store:
            assert await bundle_sizes(beside, store) == {}
            await open_bundles(restored, store)
            assert await (await open_bundles(beside, store)).get(BUNDLE.hash) == BUNDLE
