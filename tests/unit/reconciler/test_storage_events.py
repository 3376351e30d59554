"""Tenants hear once that their apps cannot write, and once that they can again."""

from __future__ import annotations

import pytest
from tests.application import MAIN, fake_world

from builderd.engine.port import Readiness
from builderd.events.retention import StorageEvents
from builderd.events.store import EventQuery


async def test_each_change_is_one_event_without_the_hosts_paths() -> None:
    async with fake_world() as world:
        async with world.reconciling():
            builder = await world.create(MAIN)
        events = StorageEvents(world.application)

        async def told() -> list[str]:
            query = EventQuery(types=("storage.*",))
            found = await world.application.store.read(
                lambda uow: uow.events.following(builder.tenant_id, query, after=0, limit=9)
            )
            assert not any("/" in event.reason for event in found)
            return [event.type for event in found]

        await events.check()
        assert await told() == []

        async def check_unreachable() -> None:
            # A cluster without a quorum: its apps write, or not, as before.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(world.engine, "readiness", lambda: Readiness(False, "no quorum", engine_unreachable=True))
                await events.check()

        await check_unreachable()
        assert await told() == []
        world.engine.ready = False
        await events.check()
        await events.check()
        await check_unreachable()
        assert await told() == ["storage.unavailable"]
        world.engine.ready = True
        await events.check()
        assert await told() == ["storage.unavailable", "storage.available"]
