"""Fair queueing: who starts a request in which iteration of the event loop."""

from __future__ import annotations

import asyncio

import pytest

from builderd.api.server import fair_queue
from builderd.api.server.fair_queue import FairQueue, RequestStarts, Start, credential_of
from builderd.domain.ids import TenantId, secret_hash

ACME, OTHER = TenantId("acme"), TenantId("other")


def call(start: Start) -> bool:
    return start()


class Started:
    """Names of the requests that have started, in their order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def named(self, name: str, *, needed: bool = True) -> Start:
        def start() -> bool:
            if needed:
                self.names.append(name)
            return needed

        return start


async def test_each_key_starts_one_request_in_an_iteration_and_the_first_at_once() -> None:
    queue, started = FairQueue[Start](10, call), Started()
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queue.enter(name[0], started.named(name))
    assert started.names == ["a1", "b1", "c1"]
    await asyncio.sleep(0)
    assert started.names[3:] == ["a2", "b2"]
    await asyncio.sleep(0)
    assert started.names[5:] == ["a3"]


async def test_keys_beyond_those_of_an_iteration_take_turns() -> None:
    queue, started = FairQueue[Start](2, call), Started()
    for name in ("a1", "b1", "a2", "c1", "d1", "a3"):
        queue.enter(name[0], started.named(name))
    seen = [len(started.names)]
    while len(started.names) < 6:
        await asyncio.sleep(0)
        seen.append(len(started.names))
    assert started.names == ["a1", "b1", "a2", "c1", "d1", "a3"]
    assert seen == [2, 4, 6]


async def test_requests_that_are_not_needed_any_more_take_no_turn() -> None:
    queue, started = FairQueue[Start](1, call), Started()
    queue.enter("a", started.named("a1"))
    for number in range(2, 100):
        queue.enter("a", started.named(f"a{number}", needed=False))
    queue.enter("b", started.named("b1", needed=False))
    queue.enter("c", started.named("c1"))
    queue.enter("a", started.named("a100"))
    for _ in range(4):
        await asyncio.sleep(0)
    assert started.names == ["a1", "a100", "c1"]
    # Nothing waits: the next one starts at once.
    queue.enter("d", started.named("d1"))
    assert started.names[-1] == "d1"


async def test_a_known_credential_starts_in_its_tenants_turn_instead_of_its_addresss() -> None:
    starts, started = RequestStarts(), Started()
    starts.learn("hash", ACME)
    for number in range(50):
        starts.enter(None, "192.0.2.1", started.named(f"flood{number}"))
        starts.enter("other", "192.0.2.1", started.named(f"guess{number}"))
    starts.enter("hash", "192.0.2.1", started.named("known"))
    assert started.names == ["flood0", "known"]
    await asyncio.sleep(0)
    starts.forget("hash")
    starts.enter("hash", "192.0.2.1", started.named("revoked"))
    assert "revoked" not in started.names


async def test_start_that_fails_loses_neither_its_keys_others_nor_the_next_iteration() -> None:
    queue, started = FairQueue[Start](2, call), Started()

    def fail() -> bool:
        raise RuntimeError("on purpose")

    queue.enter("a", started.named("a1"))
    for key, start in (("a", fail), ("a", started.named("a2")), ("b", started.named("b1")), ("b", started.named("b2"))):
        queue.enter(key, start)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    for _ in range(6):
        await asyncio.sleep(0)
    assert sorted(started.names) == ["a1", "a2", "b1", "b2"]


async def test_excess_is_of_the_key_that_has_most_and_its_oldest() -> None:
    queue = FairQueue[str](1, lambda _: True)
    for entry in ("a0", "b1", "a1", "a2", "a3", "b2", "c1"):
        queue.enter(entry[0], entry)
    assert queue.remove_excess(6) == []
    assert sorted(queue.remove_excess(3)) == ["a1", "a2", "b1"]
    assert len(queue) == 3
    assert sorted(queue.remove_excess(0)) == ["a3", "b2", "c1"]
    await asyncio.sleep(0)
    queue.enter("d", "d1")
    assert len(queue) == 0


async def test_addresses_of_one_ipv6_network_share_a_turn() -> None:
    """One user has all of them."""
    starts, started = RequestStarts(), Started()
    for number in range(1, 50):
        starts.enter(None, f"2001:db8::{number:x}", started.named(f"flood{number}"))
    starts.enter(None, "2001:db8:0:1::1", started.named("neighbour"))
    starts.enter(None, "::ffff:192.0.2.1", started.named("mapped"))
    starts.enter(None, "192.0.2.1", started.named("same"))
    assert started.names == ["flood1", "neighbour", "mapped"]


async def test_only_so_many_credentials_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "MAX_KNOWN", 50)
    starts = RequestStarts()
    for number in range(51):
        starts.learn(str(number), TenantId(str(number)))
    assert starts.tenant_of("0") is None
    assert starts.tenant_of("1") == "1"


async def test_credentials_of_one_tenant_displace_none_of_others() -> None:
    starts = RequestStarts()
    starts.learn("kept", OTHER)
    for number in range(fair_queue.MAX_KNOWN + 1):
        starts.learn(str(number), ACME)
        starts.learn("used", ACME)
    assert starts.tenant_of("kept") == OTHER
    assert starts.tenant_of("used") == ACME
    assert len(starts._known) == fair_queue.MAX_KNOWN_OF_TENANT + 1
    for credential in list(starts._known):
        starts.forget(credential)
    assert not starts._of_tenant


def test_credential_is_the_token_that_is_looked_up_or_the_session_alone() -> None:
    """Else one valid token is as many as there are headers around it."""
    good, cookie = (b"authorization", b"Bearer good"), (b"cookie", b"a=1; builderd-session=good; b=2")
    for headers in (
        [good],
        [(b"host", b"a"), good, (b"authorization", b"Bearer junk")],
        [cookie],
        [(b"cookie", b"a=2"), (b"cookie", b"__Host-builderd=good")],
        [cookie, (b"authorization", b"Basic shared")],
    ):
        assert credential_of(headers) == secret_hash("good")
    assert credential_of([(b"cookie", b"theme=dark; not-builderd-session=x; __Host-builderd-openid=y")]) is None
    assert credential_of([(b"authorization", b"Bearer "), (b"host", b"a")]) is None
