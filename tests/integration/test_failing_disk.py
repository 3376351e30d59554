"""A failing disk of the database: the message names the disk, since a restore would not mend it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contract.store.samples import TENANT, add, add_builder
from tests.small_disk import cut_power, restore_power, small_disk
from tests.stores import open_store

from builderd.core.errors import StoreUnavailable
from builderd.database.unit_of_work import Store

pytestmark = pytest.mark.root


async def test_unreadable_disk_is_named_instead_of_a_damaged_database(tmp_path: Path) -> None:
    """SQLite reports its EIO as a malformed file."""
    with small_disk(tmp_path, 64 << 20) as disk:
        url = f"sqlite:///{disk}/data/builderd.db"
        async with open_store(url) as store:
            await add(store, TENANT)
            for _ in range(50):
                await add_builder(store)
        store = Store(url)
        await store.read(lambda uow: uow.tenants.get(TENANT.id))
        cut_power(disk)
        with pytest.raises(StoreUnavailable, match="look at its disk") as failed:
            await store.read(lambda uow: uow.builders.ids())
        await store.close()
        restore_power(disk)
    assert "malformed" in str(failed.value.__cause__)
    assert "restore" not in failed.value.message
