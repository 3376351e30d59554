"""Usage by builder."""

from __future__ import annotations

from tests.application import MAIN, REQUIREMENTS, World

from builderd.builders import service as builders
from builderd.code.model import BundleFile
from builderd.metrics import service as metrics


async def test_inventory_lists_builders_of_all_tenants(world: World) -> None:
    async with world.reconciling():
        first = await world.create(MAIN, REQUIREMENTS, name="zebra")
        gone = await world.create(name="gone")
        await world.reached(builders.delete, gone)
        other = await world.create(BundleFile("x.py", b""), entrypoint="python3 x.py", name="ant")
        world.caller = await world.tenant("zeta")
        foreign = await world.create(MAIN, REQUIREMENTS, name="api")
    found = await world.read(metrics.users)
    assert [(user.tenant, user.name, user.id) for user in found] == [
        ("acme", "ant", other.id),
        ("acme", "zebra", first.id),
        ("zeta", "api", foreign.id),
    ]
    (key,) = world.engine.known_layers
    assert [user.layer for user in found] == [None, key, key]
    assert [user.disks for user in found] == [(other.disk,), (first.disk,), (foreign.disk,)]
    stored = set(world.bundles.stored)
    assert await world.read(lambda uow: metrics.used_bundles(uow, [*stored, "9" * 64])) == stored
