"""Taking all sandboxes down ends each, whatever becomes of another."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from builderd.adapters.engines.incus import down
from builderd.adapters.engines.incus.down import AT_A_TIME, ATTEMPTS, stop_each
from builderd.adapters.engines.incus.errors import error_of
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId
from builderd.domain.members import MemberAway

MANY = tuple(SandboxId(f"s-{number}") for number in range(100))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(down, "RETRY_SECONDS", 0)


def failure() -> Exception:
    return error_of(500, "Missing event connection with target cluster member", "GET /operations/1/wait")


async def test_those_that_failed_are_stopped_again() -> None:
    tried: Counter[SandboxId] = Counter()

    async def stop(sandbox: SandboxId) -> None:
        tried[sandbox] += 1
        if sandbox in MANY[10:30] and tried[sandbox] < ATTEMPTS:
            raise failure()

    await stop_each(stop, MANY)
    assert {tried[sandbox] for sandbox in MANY[10:30]} == {ATTEMPTS}
    assert {tried[sandbox] for sandbox in (*MANY[:10], *MANY[30:])} == {1}


async def test_sandboxes_that_cannot_be_stopped_are_counted_after_the_others() -> None:
    stopped: set[SandboxId] = set()

    async def stop(sandbox: SandboxId) -> None:
        if sandbox in MANY[:2]:
            raise failure()
        stopped.add(sandbox)

    with pytest.raises(EngineUnavailable, match=r"^2 of 100 sandboxes .* builderd down again.*Missing event") as raised:
        await stop_each(stop, MANY)
    assert raised.value.retry_after is not None
    assert stopped == set(MANY[2:])


async def test_error_that_nobody_expected_keeps_no_other_sandbox_from_its_end() -> None:
    stopped: set[SandboxId] = set()

    async def stop(sandbox: SandboxId) -> None:
        await asyncio.sleep(0)
        if sandbox == MANY[0]:
            raise KeyError("size")
        stopped.add(sandbox)

    with pytest.raises(EngineUnavailable, match=r"^1 of 100 sandboxes .* KeyError"):
        await stop_each(stop, MANY)
    assert stopped == set(MANY[1:])


async def test_sandboxes_of_members_that_are_away_are_tried_once_and_counted_apart() -> None:
    tried: Counter[SandboxId] = Counter()

    async def stop(sandbox: SandboxId) -> None:
        tried[sandbox] += 1
        if sandbox in MANY[:5]:
            raise MemberAway("The member node2 does not answer.")

    with pytest.raises(EngineUnavailable, match=r"^5 of 100 sandboxes .*, 5 of them on members that are away"):
        await stop_each(stop, MANY)
    assert set(tried.values()) == {1}


async def test_so_many_are_stopped_at_a_time() -> None:
    running = most = 0

    async def stop(_: SandboxId) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await stop_each(stop, MANY)
    assert most == AT_A_TIME
