"""The totals of each tenant are counted again from time to time."""

from __future__ import annotations

from tests.application import World

from builderd.reconciler.jobs import totals
from builderd.store.tables import tenants


async def test_wrong_total_of_each_tenant_is_corrected(world: World) -> None:
    async with world.reconciling():
        await world.create()

    def falsify(uow: object) -> None:
        uow.tenants._connection.execute(tenants.update().values(live_builders=9, live_disk=1))  # type: ignore[attr-defined]

    def read(uow: object) -> list[tuple[int, int]]:
        rows = uow.tenants._connection.execute(tenants.select())  # type: ignore[attr-defined]
        return [(row.live_builders, row.live_disk) for row in rows]

    before = await world.read(read)
    assert before[0][0] == 1
    await world.application.store.write(falsify)
    assert await world.read(read) != before
    await totals.count_anew(world.application)
    assert await world.read(read) == before
