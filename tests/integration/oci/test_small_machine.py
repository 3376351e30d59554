"""A machine with 25 GB of disk and 2 GB of memory holds at least twenty apps of default size."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.application import fake_world
from tests.integration.oci.stores import open_store
from tests.integration.oci.test_disks import MB, fill

from builderd.core.errors import NoCapacity
from builderd.core.resources import GB, Capacity, room_of
from builderd.engine.oci.engine import machine
from builderd.engine.oci.storage import backing, space_reservations
from builderd.engine.oci.storage.disks import Disks
from builderd.engine.oci.storage.layer_store import LayerCache
from builderd.engine.port import StoreOptions
from builderd.settings import Settings

pytestmark = pytest.mark.root

SIZE, WRITTEN = 25 * GB, 50 * MB


async def test_small_machine_holds_twenty_apps_and_admits_the_room_that_it_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    limits, options = settings.to_tenant_limits(), StoreOptions(None, SIZE, 0, settings.store.overcommit)
    # As if the host had 25 GB free for the file, which is sparse; within the store, what is really free.
    for module in (backing, machine, space_reservations):
        real = module.free_bytes
        monkeypatch.setattr(module, "free_bytes", lambda path, real=real: real(path) if path.name == "store" else SIZE)
    async with fake_world() as made_world:
        application, engine = replace(made_world.application, tenant_limits=limits), made_world.engine
        world = replace(made_world, application=application)
        with open_store(tmp_path, options) as store:
            disks = Disks(store)
            disks.open()
            LayerCache(store).open(4 * GB)
            engine.has = Capacity(2, 2, store.reservations.capacity() / GB)
            monkeypatch.setattr(engine, "reserve_disk", disks.reserve)
            monkeypatch.setattr(machine, "mounted_store", lambda _: store.root)

            async def room() -> int:
                allocated = await application.store.read(lambda uow: uow.builders.allocated())
                used = machine.measure(tmp_path / "data", options)
                assert used.disks == store.reservations.disks_left(), "what doctor reads is what the service admits"
                return room_of(limits.of_machine(engine.has), used, allocated)[0]

            made, told = 0, await room()
            while await room():
                builder = await world.ask(name=f"app-{made}")
                disks.create(builder.disk, 3 * GB)
                await asyncio.to_thread(fill, disks.app(builder.disk) / "data", WRITTEN)
                made += 1
            with pytest.raises(NoCapacity, match=r"store\.overcommit"):
                await world.ask(name="one-more")
            assert 20 <= made <= told + 1
            assert len([one for one in store.disks.glob("*/app/data") if one.stat().st_size == WRITTEN]) == made
            disks.close()
