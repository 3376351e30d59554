"""Freezing for a copy of a disk: a failure is reported, and nobody else thaws the app meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on

from builderd.adapters.engines.incus import cluster, network
from builderd.adapters.engines.incus.client import IncusConflict, IncusError
from builderd.adapters.engines.incus.instances import Freezer
from builderd.domain.errors import EngineUnavailable
from builderd.domain.ids import SandboxId
from builderd.domain.sandboxes import SandboxState

NAME = "s-1"


def freezer_on(incus: ScriptedIncus) -> Freezer:
    return Freezer(machine_on(incus).instances)


def refuse(incus: ScriptedIncus, refused: EngineUnavailable, ends: bool = False) -> None:
    async def before(method: str, path: str) -> None:
        if path.endswith("/state"):
            if ends:
                incus.instances[NAME]["status"] = "Stopped"
            raise refused

    incus.before = before


async def status_while_left_frozen_are_thawed(freezer: Freezer, incus: ScriptedIncus) -> Any:
    await freezer.thaw_left(await incus.get(f"/instances/{NAME}"))
    return incus.instances[NAME]["status"]


async def test_app_stays_frozen_while_its_disk_is_copied() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME)
    freezer = freezer_on(incus)
    async with freezer.frozen_meanwhile(NAME):
        assert await status_while_left_frozen_are_thawed(freezer, incus) == "Frozen"
    assert incus.instances[NAME]["status"] == "Running"


class Visitors:
    """Writes down the status of the instance when its visitors begin and cease to wait."""

    def __init__(self, incus: ScriptedIncus) -> None:
        self._incus = incus
        self.seen: list[tuple[str, str]] = []

    @asynccontextmanager
    async def paused(self, ip: str) -> AsyncIterator[None]:
        self.seen.append((ip, self._incus.instances[NAME]["status"]))
        try:
            yield
        finally:
            self.seen.append((ip, self._incus.instances[NAME]["status"]))


async def test_visitors_wait_from_before_the_freeze_until_after_the_thaw() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME, ip="10.99.0.2")
    visitors = Visitors(incus)
    freezer = Freezer(machine_on(incus, pause_requests=visitors.paused).instances)
    for times in (1, 2):
        async with freezer.frozen_meanwhile(NAME):
            assert incus.instances[NAME]["status"] == "Frozen"
            assert len(visitors.seen) == 2 * times - 1
        assert visitors.seen == [("10.99.0.2", "Running")] * 2 * times


async def test_visitors_wait_no_more_after_a_freeze_that_failed() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME, ip="10.99.0.2")
    visitors = Visitors(incus)
    freezer = Freezer(machine_on(incus, pause_requests=visitors.paused).instances)
    refuse(incus, IncusError(500, "cgroup"))
    with pytest.raises(IncusError):
        async with freezer.frozen_meanwhile(NAME):
            pass
    assert visitors.seen == [("10.99.0.2", "Running")] * 2
    async with freezer.lock(NAME):
        pass


async def test_app_that_sleeps_is_copied_and_sleeps_on() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME, status="Frozen", frozen="20", thawed="10")
    async with freezer_on(incus).frozen_meanwhile(NAME):
        pass
    assert incus.instances[NAME]["status"] == "Frozen"
    assert incus.changes == []


async def test_visitor_of_an_app_that_is_copied_waits_for_the_copy() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME, builder="b", disk="d", ip="10.99.0.2", started="1")
    machine = machine_on(incus)
    machine.sandboxes._ordered.add(NAME)
    async with machine.sandboxes._freezer.frozen_meanwhile(NAME):
        waking = asyncio.create_task(machine.sandboxes.thaw(SandboxId("1")))
        await asyncio.sleep(0.01)
        assert incus.instances[NAME]["status"] == "Frozen"
        assert not waking.done()
    assert (await waking).state is SandboxState.RUNNING
    assert "user.builderd.thawed" not in incus.instances[NAME]["config"]


async def test_copy_that_is_cancelled_before_its_freeze_has_ended_leaves_the_app_running() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME)
    freezer = freezer_on(incus)
    frozen, ended = asyncio.Event(), asyncio.Event()

    async def hang_once(method: str, path: str) -> None:
        if not frozen.is_set():
            frozen.set()
            await ended.wait()

    incus.after = hang_once
    copying = asyncio.create_task(freezer.frozen_meanwhile(NAME).__aenter__())
    await frozen.wait()
    copying.cancel()
    await asyncio.sleep(0)
    assert incus.instances[NAME]["status"] == "Frozen"
    ended.set()
    await asyncio.wait({copying})
    assert incus.instances[NAME]["status"] == "Running"
    async with freezer.frozen_meanwhile(NAME):
        assert incus.instances[NAME]["status"] == "Frozen"
    assert incus.instances[NAME]["status"] == "Running"


async def test_app_that_sleeps_is_not_thawed() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME, status="Frozen", frozen="20", thawed="10")
    freezer = freezer_on(incus)
    assert await status_while_left_frozen_are_thawed(freezer, incus) == "Frozen"


async def test_app_that_went_to_sleep_after_it_was_listed_is_not_thawed() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME, status="Frozen")
    listed = await incus.get(f"/instances/{NAME}")
    incus.has_instance(NAME, status="Frozen", frozen="20")
    await freezer_on(incus).thaw_left(listed)
    assert incus.instances[NAME]["status"] == "Frozen"


@pytest.mark.parametrize("refused", [IncusError(500, "cgroup"), IncusConflict(409, "already running an operation")])
async def test_disk_is_not_copied_where_the_freeze_fails(refused: IncusError) -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME)
    freezer = freezer_on(incus)
    refuse(incus, refused)
    copied = False
    with pytest.raises(IncusError, match=refused.message):
        async with freezer.frozen_meanwhile(NAME):
            copied = True
    assert not copied


async def test_disk_of_an_app_that_ends_before_the_freeze_is_copied() -> None:
    incus = ScriptedIncus()
    incus.has_instance(NAME)
    refuse(incus, IncusError(400, "The instance isn't running"), ends=True)
    copied = False
    async with freezer_on(incus).frozen_meanwhile(NAME):
        copied = True
    assert copied


@pytest.mark.parametrize("members_answer", [True, False], ids=["thaw fails", "quorum lost"])
async def test_app_that_was_not_thawed_after_a_copy_is_thawed_once_incus_answers_again(
    members_answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.001)

    async def ip(*_: str) -> str:
        return ""

    monkeypatch.setattr(network, "_ip", ip)
    incus = ScriptedIncus()
    incus.has_instance(NAME, builder="b", ip="10.99.0.2")
    machine = machine_on(incus)
    await machine.members.look()

    async def fail(*_: object, **__: object) -> Any:
        raise EngineUnavailable("no quorum")

    machine.members.watch(machine.on_change)
    try:
        async with asyncio.timeout(10):
            with monkeypatch.context() as lost:
                async with machine.sandboxes._freezer.frozen_meanwhile(NAME):
                    lost.setattr(incus, "get", fail)
                    lost.setattr(incus, "before", fail)
                    if not members_answer:
                        lost.setattr(machine.cluster, "members", fail)
                        while not machine.members.unavailable_reason:
                            await asyncio.sleep(0.001)
                assert incus.instances[NAME]["status"] == "Frozen"
            while incus.instances[NAME]["status"] == "Frozen":
                await asyncio.sleep(0.001)
    finally:
        await machine.members.close()
    assert incus.instances[NAME]["status"] == "Running"
