"""A use that goes on is written down for as long as it does."""

from __future__ import annotations

import pytest
from tests.application import World, fake_world

from builderd.domain.errors import StoreUnavailable
from builderd.domain.ids import BuilderId
from builderd.services import wake
from builderd.store import UnitOfWork


async def test_short_outage_of_the_database_does_not_end_the_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_world(freeze_after=0.03) as world:
        async with world.reconciling():
            builder = await world.create()
        store, failures = world.application.store, 3
        write = store.write

        async def faulty(work):  # type: ignore[no-untyped-def]
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StoreUnavailable("The database does not answer.")
            return await write(work)

        monkeypatch.setattr(store, "write", faulty)
        world.clock.move(1000)
        (sandbox,) = world.running
        async with wake.keep_awake(world.application, sandbox.spec.id):
            await world.until(lambda: failures < 0)
            await world.until(lambda: _used_now(world, builder.id))
    assert "use not recorded" in caplog.text


async def _used_now(world: World, builder_id: BuilderId) -> bool:
    def look(uow: UnitOfWork) -> bool:
        builder = uow.builders.get(builder_id)
        return builder is not None and builder.last_active_at == world.clock.now()

    return await world.read(look)
