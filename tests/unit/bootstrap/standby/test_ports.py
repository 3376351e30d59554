"""A standby passes its ports on to the service that works."""

from __future__ import annotations

from tests.unit.bootstrap.standby.services import (
    FakePassingOn,
    Services,
)

from builderd.settings import Settings


async def test_standby_passes_its_ports_on_to_the_owner_and_frees_them_for_itself(
    services: Services, one: Settings, two: Settings
) -> None:
    first, second = await services.start_both(one, two)
    own = "10.98.0.11:8083"
    await second.until(lambda: ("follow", own) in FakePassingOn.steps("two"))
    await first.stop()
    await second.until(lambda: second.works)
    assert ("close", None) not in FakePassingOn.steps("two"), "its ports are its own until the API listens"
    await second.owned.end_standby()
    assert FakePassingOn.steps("two")[-1] == ("close", own)
    await second.stop()
    assert FakePassingOn.steps("two")[-1] == ("close", None)


async def test_standby_that_ends_frees_its_ports(services: Services, one: Settings, two: Settings) -> None:
    _, second = await services.start_both(one, two)
    await second.stop()
    assert FakePassingOn.steps("two")[-1] == ("close", None)
