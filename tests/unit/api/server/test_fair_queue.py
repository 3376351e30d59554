"""Fair queueing: who starts a request in which iteration of the event loop."""

from __future__ import annotations

import asyncio

from builderd.api.server import fair_queue
from builderd.api.server.fair_queue import FairQueue, RequestStarts, Start
from builderd.domain.ids import TenantId

ACME = TenantId("acme")


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
    queue, started = FairQueue(10), Started()
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queue.enter(name[0], started.named(name))
    assert started.names == ["a1", "b1", "c1"]
    await asyncio.sleep(0)
    assert started.names[3:] == ["a2", "b2"]
    await asyncio.sleep(0)
    assert started.names[5:] == ["a3"]


async def test_keys_beyond_those_of_an_iteration_take_turns() -> None:
    queue, started = FairQueue(2), Started()
    for name in ("a1", "b1", "a2", "c1", "d1", "a3"):
        queue.enter(name[0], started.named(name))
    seen = [len(started.names)]
    while len(started.names) < 6:
        await asyncio.sleep(0)
        seen.append(len(started.names))
    assert started.names == ["a1", "b1", "a2", "c1", "d1", "a3"]
    assert seen == [2, 4, 6]


async def test_requests_that_are_not_needed_any_more_take_no_turn() -> None:
    queue, started = FairQueue(1), Started()
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


async def test_only_so_many_credentials_are_remembered() -> None:
    starts, started = RequestStarts(), Started()
    for number in range(fair_queue.MAX_KNOWN + 1):
        starts.learn(str(number), ACME)
    starts.enter("1", "192.0.2.1", started.named("known"))
    starts.enter(None, "192.0.2.1", started.named("flood"))
    starts.enter("0", "192.0.2.1", started.named("forgotten"))
    assert started.names == ["known", "flood"]
