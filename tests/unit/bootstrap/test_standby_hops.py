"""The kernel of a standby's machine has the routes that were wanted last, whatever happened meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from tests.unit.bootstrap.fake_cluster import FakeCluster

from builderd.bootstrap.standby_hops import StandbyHops

HOPS = {"10.99.0.20": "10.98.0.12"}


class Kernel(FakeCluster):
    """Reads its routes first, and changes them some time later, as ``ip`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: dict[str, str] = {}

    async def put_standby_routes(self, hops: Mapping[str, str]) -> list[str]:
        seen = dict(self.routes)
        await asyncio.sleep(0.01 if hops else 0.03)
        for one in seen.keys() - hops.keys():
            self.routes.pop(one, None)
        self.routes |= {one: via for one, via in hops.items() if seen.get(one) != via}
        return []


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


async def test_routes_that_are_wanted_while_others_are_removed_are_there(kernel: Kernel) -> None:
    hops = StandbyHops(kernel)
    assert await hops.put(HOPS)
    clearing = asyncio.create_task(hops.clear())
    await asyncio.sleep(0)
    assert await hops.put(HOPS)
    await clearing
    assert (kernel.routes, hops.is_put) == (HOPS, True)


async def test_routes_that_are_removed_while_they_are_put_are_gone_and_known_to_be(kernel: Kernel) -> None:
    hops = StandbyHops(kernel)
    putting = asyncio.create_task(hops.put(HOPS))
    await asyncio.sleep(0)
    await hops.clear()
    await putting
    assert (kernel.routes, hops.is_put, hops.has_any) == ({}, False, False)
    assert await hops.put(HOPS)
    assert kernel.routes == HOPS


async def test_routes_that_came_into_use_while_they_waited_for_their_removal_stay(kernel: Kernel) -> None:
    hops, is_led = StandbyHops(kernel), False
    putting = asyncio.create_task(hops.put(HOPS))
    await asyncio.sleep(0)
    clearing = asyncio.create_task(hops.clear(unless=lambda: is_led))
    is_led = True
    await asyncio.gather(putting, clearing)
    assert (kernel.routes, hops.is_put) == (HOPS, True)


async def test_routes_that_others_removed_are_put_again(kernel: Kernel) -> None:
    hops = StandbyHops(kernel)
    await hops.put(HOPS)
    kernel.routes.clear()
    await hops.renew()
    assert kernel.routes == HOPS
    await hops.clear()
    await hops.renew()
    assert kernel.routes == {}
