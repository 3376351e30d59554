"""Counting connections: whose place a new one takes."""

from __future__ import annotations

import pytest

from builderd.api.server import connections as connections_module
from builderd.api.server.connections import REMOTE_SANDBOX_API, ConnectionLimits, Connections
from builderd.domain.errors import BuilderdError, NoCapacity, RateLimited
from builderd.domain.ids import TenantId

ACME, OTHER = TenantId("acme"), TenantId("other")


class Fake:
    def __init__(self, *, idle: bool = True) -> None:
        self.is_idle = idle
        self.presents_credential = False
        self.reason: BuilderdError | None = None

    @property
    def aborted(self) -> bool:
        return self.reason is not None

    def abort(self, error: BuilderdError) -> None:
        self.reason = error


def admitted(connections: Connections, count: int, address: str = "192.0.2.1", *, idle: bool = True) -> list[Fake]:
    made = [Fake(idle=idle) for _ in range(count)]
    for one in made:
        connections.admit(one, address)
    return made


def test_one_too_many_of_an_address_closes_its_least_recently_used_idle_one() -> None:
    connections = Connections(ConnectionLimits(address=3, newcomers=0))
    busy, idle, used = admitted(connections, 3)
    busy.is_idle = False
    connections.touch(used)
    admitted(connections, 1)
    assert [one.aborted for one in (busy, idle, used)] == [False, True, False]
    assert len(connections) == 3


def test_an_address_whose_connections_are_all_busy_is_refused_one_more() -> None:
    connections = Connections(ConnectionLimits(address=2, newcomers=0))
    kept = admitted(connections, 2, idle=False)
    with pytest.raises(RateLimited) as refused:
        admitted(connections, 1)
    assert refused.value.retry_after
    assert not any(one.aborted for one in kept)
    admitted(connections, 1, "192.0.2.2")


def test_newcomers_may_present_a_token_while_all_connections_of_their_address_are_busy() -> None:
    """Otherwise a flood from a shared address refuses valid tokens behind it before they are read."""
    connections = Connections(ConnectionLimits(address=2, newcomers=2))
    kept = admitted(connections, 2, idle=False)
    first, second, third = admitted(connections, 3)
    assert [one.aborted for one in (*kept, first, second, third)] == [False, False, True, False, False]
    second.is_idle = third.is_idle = False
    with pytest.raises(RateLimited):
        admitted(connections, 1)
    assert not connections.may_start_without_credential(third)
    connections.count_for_tenant(second, ACME)
    connections.count_for_tenant(third, ACME)
    assert connections.may_start_without_credential(third)
    admitted(connections, 1)


def test_request_without_a_token_takes_the_place_of_an_idle_connection() -> None:
    connections = Connections(ConnectionLimits(address=2, newcomers=2))
    idle, *others = admitted(connections, 3)
    for one in others:
        one.is_idle = False
    assert connections.may_start_without_credential(others[1])
    assert [one.aborted for one in (idle, *others)] == [True, False, False]


def test_request_without_a_token_closes_none_that_presents_one() -> None:
    connections = Connections(ConnectionLimits(address=2, newcomers=1))
    waiting, idle, asking = admitted(connections, 3)
    waiting.presents_credential, asking.is_idle = True, False
    assert connections.may_start_without_credential(asking)
    assert [one.aborted for one in (waiting, idle)] == [False, True]
    admitted(connections, 1, idle=False)
    assert not connections.may_start_without_credential(asking)
    assert not waiting.aborted


def test_connection_is_closed_with_the_limit_that_was_met() -> None:
    of_address, *_ = admitted(Connections(ConnectionLimits(address=2, newcomers=0)), 3)
    of_all, *_ = admitted(Connections(ConnectionLimits(total=2)), 3)
    connections = Connections(ConnectionLimits(tenant=1))
    of_tenant, other = admitted(connections, 2)
    for one in (of_tenant, other):
        connections.count_for_tenant(one, ACME)
    reasons = [one.reason for one in (of_address, of_all, of_tenant)]
    assert [type(reason) for reason in reasons] == [RateLimited, NoCapacity, RateLimited]
    assert "from your address" in str(reasons[0])
    assert "with your tokens" in str(reasons[2])


def test_flood_behind_the_address_of_a_member_closes_no_connection_of_its_other_apps() -> None:
    """All apps of a member come from one address; those with a service token are counted by their tenant."""
    connections = Connections(REMOTE_SANDBOX_API)
    others = admitted(connections, 20)
    for one in others:
        connections.count_for_tenant(one, ACME)
    flood = admitted(connections, 3_000)
    assert not any(one.aborted for one in others)
    assert sum(not one.aborted for one in flood) <= 1_100
    # Another member's apps, and a new one of this member, get in.
    (elsewhere,), (new,) = admitted(connections, 1, "192.0.2.2"), admitted(connections, 1)
    assert not elsewhere.aborted
    assert not new.aborted


def test_tenant_has_128_connections_from_all_members() -> None:
    connections = Connections(REMOTE_SANDBOX_API)
    made = [one for count in range(4) for one in admitted(connections, 50, f"192.0.2.{count}")]
    for one in made:
        connections.count_for_tenant(one, ACME)
    assert sum(not one.aborted for one in made) == 128


def test_the_address_with_most_connections_makes_room() -> None:
    connections = Connections(ConnectionLimits(total=4, strangers=4))
    few, many = admitted(connections, 1, "192.0.2.1"), admitted(connections, 3, "192.0.2.2")
    admitted(connections, 1, "192.0.2.3")
    assert [one.aborted for one in (*few, *many)] == [False, True, False, False]


def test_a_connection_with_a_token_is_kept_and_leaves_its_address_room() -> None:
    connections = Connections(ConnectionLimits(total=4, strangers=2, address=2, newcomers=0))
    (known,) = admitted(connections, 1)
    connections.count_for_tenant(known, ACME)
    admitted(connections, 10)
    assert not known.aborted
    assert len(connections) == 3


def test_without_a_token_only_a_part_of_all_connections_can_be_taken() -> None:
    connections = Connections(ConnectionLimits(total=4, strangers=2))
    admitted(connections, 2, idle=False)
    with pytest.raises(NoCapacity):
        admitted(connections, 1, "192.0.2.2")


def test_where_all_have_a_token_the_tenant_with_most_connections_makes_room() -> None:
    connections = Connections(ConnectionLimits(total=3))
    known = admitted(connections, 3)
    for one, tenant in zip(known, (OTHER, ACME, ACME), strict=True):
        connections.count_for_tenant(one, tenant)
    admitted(connections, 1)
    assert [one.aborted for one in known] == [False, True, False]


def test_a_tenant_has_only_so_many_and_its_idle_ones_make_room() -> None:
    connections = Connections(ConnectionLimits(tenant=1))
    first, second, third = admitted(connections, 3)
    connections.count_for_tenant(first, ACME)
    connections.count_for_tenant(second, ACME)
    assert first.aborted
    second.is_idle = False
    with pytest.raises(RateLimited):
        connections.count_for_tenant(third, ACME)
    connections.count_for_tenant(third, OTHER)


def test_closed_connection_is_not_counted() -> None:
    connections = Connections()
    (one,) = admitted(connections, 1)
    connections.count_for_tenant(one, ACME)
    connections.forget(one)
    connections.forget(one)
    connections.touch(one)
    connections.count_for_tenant(one, ACME)
    assert len(connections) == 0


def test_only_so_many_refused_connections_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "MAX_LINGERING", 2)
    connections, refused = Connections(), [Fake() for _ in range(3)]
    assert [connections.may_linger(one) for one in refused] == [True, True, False]
    connections.forget(refused[0])
    assert connections.may_linger(refused[2])
    assert len(connections) == 0
