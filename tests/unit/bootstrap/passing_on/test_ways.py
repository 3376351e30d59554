"""A standby looks at the way to the service that works, leads its ports there, and says what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.unit.bootstrap.fake_worker import DATA, answered, service
from tests.unit.bootstrap.passing_on.listing import OWNER, lease, led

from builderd.bootstrap import passing_on
from builderd.bootstrap.passing_on import PassingOn


async def test_ports_lead_to_the_owner_and_its_state_is_announced(passing: PassingOn) -> None:
    async with service(answered(DATA)) as target:
        passing.follow(replace(OWNER, address=f"127.0.0.1:{target.port}"), lease())
        await passing._look()
        assert (passing.way.worker, passing.way.fault, passing.way.readiness) == ("one.example", "", DATA)
        assert passing._membership.way == ""
        assert led(passing) == target


@pytest.mark.parametrize(("address", "reason"), [(None, "tells no address"), ("nonsense", "tells no address")])
async def test_owner_without_an_address_is_said(passing: PassingOn, address: str | None, reason: str) -> None:
    """An earlier version announces none, nor does a service on a machine that is no member."""
    async with service(answered(DATA)) as target:
        passing.follow(replace(OWNER, address=f"127.0.0.1:{target.port}"), lease())
        await passing._look()
    passing.follow(replace(OWNER, address=address), lease())
    await passing._look()
    assert (led(passing).api, led(passing).streams) == (True, True), "connections wait"
    passing._answered_at -= passing_on.HOLD_SECONDS
    passing._reached_at -= passing_on.HOLD_SECONDS
    await passing._look()
    assert (led(passing).api, led(passing).streams) == (False, False), "nothing goes to the earlier address"
    assert reason in passing.way.fault
    assert reason in (passing._membership.way or "")
    passing.follow(None, lease())
    await passing._look()
    assert passing.way.worker is None
    assert passing.way.fault
    assert (led(passing).api, led(passing).streams) == (False, False)


async def test_waiting_ends_after_some_seconds_and_previews_outlive_the_api(
    passing: PassingOn, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(passing_on, "time", SimpleNamespace(monotonic=lambda: now))
    passing.follow(replace(OWNER, address=f"127.0.0.1:{unused_tcp_port}"), lease())
    await passing._look()
    assert (led(passing).api, led(passing).streams) == (True, True), "connections wait"
    now += passing_on.HOLD_SECONDS
    await passing._look()
    assert (led(passing).api, led(passing).streams) == (False, False)
    async with service(b"") as target:
        passing.follow(replace(OWNER, address=f"127.0.0.1:{target.port}"), lease())
        await passing._look()
        assert (led(passing).api, led(passing).streams) == (True, True), "another address: they wait anew"
        now += passing_on.HOLD_SECONDS - 1
        await passing._look()
        now += passing_on.HOLD_SECONDS - 1
        await passing._look()
        assert (led(passing).api, led(passing).streams) == (False, True)
    assert "takes nothing from this member" in passing.way.fault
