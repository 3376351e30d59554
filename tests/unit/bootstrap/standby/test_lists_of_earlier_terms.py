"""A list of routes outlives the service that told it to a standby: the next one waits for its end, or inherits it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from tests.unit.bootstrap.standby.services import (
    HURRY,
    FakePassingOn,
    Services,
    share_keys,
)
from tests.unit.bootstrap.test_database_lease import _execute

from builderd.adapters.stores.sql.database_lease import DatabaseLeases
from builderd.adapters.stores.sql.services import Services as StoredServices
from builderd.bootstrap.route_lists import Moment
from builderd.domain import cluster_services
from builderd.domain.errors import StoreUnavailable
from builderd.domain.route_list import FIRST_ADDRESS_AFTER, LEASE_SECONDS, LIST_SECONDS, RESERVED_SECONDS
from builderd.settings import Settings


@pytest.mark.parametrize(("age", "term", "count"), [(0.0, 1, 1), (LIST_SECONDS, 1, 0), (0.0, 2, 0)])
async def test_list_of_the_earlier_service_is_inherited_while_it_holds(
    services: Services, one: Settings, two: Settings, age: float, term: int, count: int
) -> None:
    first, second = await services.start_both(one, two)
    passing = FakePassingOn.MADE["two"]
    assert not passing.leases[-1].is_over
    route = ["a.localhost", "10.99.0.20", 8000, False, False, "10.98.0.12"]
    answer = {"term": term, "version": "a-1", "whole": True, "routes": [route], "closed": []}
    now = Moment()
    passing.list.take(json.dumps(answer).encode(), Moment(now.boot - age, now.wall - age))
    assert list(await passing.visited_hosts()) == []
    await first.stop()
    await second.until(lambda: second.works)
    assert (passing.leases[-1].is_over, passing.leases[-1].term) == (True, 1), "released"
    assert second.owned.standby is not None
    assert len(second.owned.standby.inherited) == count


@pytest.mark.parametrize("in_order", [False, True])
async def test_service_that_announces_itself_no_more_uses_no_list(
    services: Services, one: Settings, two: Settings, make: Callable[[str], Settings], *, in_order: bool
) -> None:
    """The next service waits for those that announced themselves a short while ago."""
    first, second = await services.start_both(one, two)
    new = make("new")
    await share_keys(new, new)
    (two.data_dir / "ssh_host_key").write_bytes((new.data_dir / "ssh_host_key").read_bytes())
    await services.until_known()
    await (first.stop() if in_order else first.kill())
    leases = FakePassingOn.MADE["two"].leases
    seen, until = len(leases), time.monotonic() + 2 * cluster_services.CLAIM_AFTER
    await second.until(lambda: time.monotonic() > until and len(leases) > seen + 1)
    assert not any(one.is_over for one in leases)


async def test_service_after_another_one_gives_no_address_while_lists_of_the_earlier_term_are_used(
    services: Services, one: Settings, two: Settings
) -> None:
    first = await services.start_working(one)
    assert first.owned.first_address_at == 0.0, "nobody worked before"
    await first.stop()
    first = await services.start_working(one)
    assert first.owned.first_address_at == 0.0, "nobody stood by"
    second = services.start(two)
    await services.until_known("two")
    await first.kill()
    first = await services.start_working(one)
    wait = FIRST_ADDRESS_AFTER / HURRY
    assert 0 < first.owned.first_address_at - time.monotonic() <= wait, "the other one has a list"
    await services.until_known("two")
    began = time.monotonic()
    await first.stop()
    await second.until(lambda: second.works)
    assert second.owned.first_address_at >= began + wait


async def test_service_that_cannot_write_its_lease_waits_for_the_end_of_all_lists(
    services: Services, one: Settings, two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standbys do not learn that it is another process than the one that told them their lists."""
    first, _ = await services.start_both(one, two)
    await first.kill()

    def full(*_: object) -> None:
        raise StoreUnavailable("The disk is full.")

    monkeypatch.setattr(DatabaseLeases, "take", full)
    first = await services.start_working(one)
    assert first.owned.first_address_at - time.monotonic() > (RESERVED_SECONDS - 30) / HURRY


async def test_service_does_not_wait_for_a_standby_that_was_taken_away(
    services: Services, one: Settings, two: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An announcement stays for a week; the list of a service that was killed is used no more."""
    first, second = await services.start_both(one, two)
    with monkeypatch.context() as patch:
        patch.setattr(StoredServices, "remove", lambda *_: None)
        await second.kill()
    await first.stop()
    kept = (LIST_SECONDS + LEASE_SECONDS) / HURRY
    for age, waits in ((kept - 2, True), (kept + 1, False)):
        seen_at = f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-{age} seconds')"
        _execute(one, f"UPDATE services SET seen_at = {seen_at} WHERE data_dir = '{two.data_dir}'")
        first = await services.start_working(one)
        assert (first.owned.first_address_at > 0) is waits
        await first.stop()
