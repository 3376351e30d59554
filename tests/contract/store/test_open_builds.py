"""Builds that run are kept until they end, and removed once."""

from __future__ import annotations

from dataclasses import replace

from tests.contract.store.samples import NOW, SECOND, add_builder

from builderd.domain.prices import OpenBuild
from builderd.store import Store, UnitOfWork


async def test_open_builds_are_listed_oldest_first_and_removed_once(store: Store) -> None:
    builder = await add_builder(store)
    first = OpenBuild("b", builder.tenant_id, builder.id, NOW, NOW)
    second = replace(first, id="a", started_at=NOW + SECOND, seen_at=NOW + SECOND)

    def write(uow: UnitOfWork) -> None:
        for build in (second, first):
            uow.open_builds.add(build)
        uow.open_builds.seen(first.id, NOW + 5 * SECOND)
        uow.open_builds.seen("unknown", NOW)

    await store.write(write)
    assert await store.read(lambda uow: uow.open_builds.all()) == [replace(first, seen_at=NOW + 5 * SECOND), second]
    assert await store.write(lambda uow: uow.open_builds.remove(first.id))
    assert not await store.write(lambda uow: uow.open_builds.remove(first.id))
    assert await store.read(lambda uow: uow.open_builds.all()) == [second]
