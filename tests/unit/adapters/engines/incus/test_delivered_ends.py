"""An app that ends soon after its order is not reported as running, however long its delivering program seems to."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.unit.adapters.engines.incus.scripted_incus import ScriptedIncus, machine_on
from tests.unit.adapters.engines.incus.test_deliveries import OPEN, PORT, REPORT, Session, until_read

from builderd.adapters.engines.incus import deliveries as module
from builderd.adapters.engines.incus import guest
from builderd.adapters.engines.incus.cluster import Member
from builderd.adapters.engines.incus.engine import IncusEngine
from builderd.adapters.engines.incus.exec_session import ExecSession
from builderd.adapters.engines.incus.machine import Machine
from builderd.adapters.engines.incus.options import IncusOptions
from builderd.domain.sandboxes import EndCause, SandboxState

ONE = REPORT.id
OWN = {"builder": "b", "disk": "d", "ip": "10.99.0.20", "started": "1.0"}


class Incus(ScriptedIncus):
    """Incus with an app s-1, whose exit record has the code 3 and the time ``ended_at``."""

    ended_at = 5.0

    async def file(self, instance: str, path: str) -> bytes:
        await asyncio.sleep(0)
        return f"3 0 {self.ended_at}\n".encode() if path == guest.EXIT_RECORD else b""


class OpenSession(Session):
    """A session that stays open, as one to a member without power does. ``at_write`` is called with the order."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__(*pieces)
        self.at_write: Any = None

    async def write(self, data: bytes) -> None:
        await super().write(data)
        if self.at_write:
            await self.at_write()


@pytest.fixture
def incus() -> Incus:
    incus = Incus()
    incus.has_instance("s-1", **OWN)
    return incus


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> OpenSession:
    session = OpenSession(guest.DELIVERED + OPEN + guest.TABLE_END)

    async def answer(*_: Any) -> OpenSession:
        return session

    monkeypatch.setattr(ExecSession, "open", answer)
    return session


async def started(incus: Incus, session: OpenSession) -> Machine:
    """Return a machine whose app got its order as ``Sandboxes.start`` gives it."""
    machine = machine_on(incus)
    await machine.instances.index.load()
    await machine.sandboxes.deliveries.deliver("s-1", b"order", "10.99.0.20", PORT)
    machine.sandboxes._ordered.add("s-1")
    machine.sandboxes.deliveries.note("s-1", REPORT)
    await until_read(session)
    return machine


async def exits(machine: Machine) -> list[str]:
    """Return the first sandbox that the engine says to have ended, once Incus has told its end."""
    options: Any = None
    engine = IncusEngine(options, IncusOptions())
    engine._machine = machine
    found = engine.exits()
    next_one = asyncio.ensure_future(anext(found))
    while not machine.events._subscribers:
        await asyncio.sleep(0)
    machine.events._publish(ONE)
    ended = await next_one
    await found.aclose()  # type: ignore[attr-defined]
    return [ended]


async def test_event_of_its_end_counts_more_than_a_session_that_stays_open(incus: Incus, session: OpenSession) -> None:
    machine = await started(incus, session)
    assert await machine.sandboxes.report(ONE) == REPORT
    incus.instances["s-1"]["status"] = "Stopped"
    assert await exits(machine) == [ONE]
    written = [path for method, path in incus.changes if method == "PATCH"]
    assert written == ["/instances/s-1"], "its end"
    report = await machine.sandboxes.report(ONE)
    assert report.end
    assert (report.state, report.end.exit_code) == (SandboxState.EXITED, 3)
    await machine.sandboxes.deliveries.close()
    assert session.closed


async def test_end_during_the_delivery_is_not_forgotten(incus: Incus, session: OpenSession) -> None:
    machine = machine_on(incus)

    async def end() -> None:
        incus.instances["s-1"]["status"] = "Stopped"
        await exits(machine)

    session.at_write = end
    await machine.sandboxes.deliveries.deliver("s-1", b"order", "10.99.0.20", PORT)
    machine.sandboxes._ordered.add("s-1")
    machine.sandboxes.deliveries.note("s-1", REPORT)
    assert (await machine.sandboxes.report(ONE)).state is SandboxState.EXITED
    await machine.sandboxes.deliveries.close()
    assert session.closed


@pytest.mark.parametrize("grace", [0, 10])
async def test_stopped_app_is_reported_with_its_end(incus: Incus, session: OpenSession, grace: float) -> None:
    machine = await started(incus, session)
    incus.ended_at = 9999999999.5
    report = await machine.sandboxes.stop(ONE, grace)
    assert report.end
    assert report.end.cause is EndCause.STOPPED
    assert await machine.sandboxes.report(ONE) == report


@pytest.mark.parametrize(("arrived", "asks"), [("node2", True), ("node3", False)])
async def test_apps_of_a_member_that_returns_are_asked_for(
    incus: Incus, session: OpenSession, monkeypatch: pytest.MonkeyPatch, arrived: str, asks: bool
) -> None:
    machine = await started(incus, session)

    async def adopt(_: object) -> None: ...

    monkeypatch.setattr(machine.sandboxes.adoption, "adopt_on", adopt)
    incus.instances["s-1"]["status"] = "Stopped"
    await machine.on_arrival([Member(arrived, "10.0.0.9", online=True)])
    assert ((await machine.sandboxes.report(ONE)).state is SandboxState.EXITED) is asks
    await machine.sandboxes.deliveries.close()


@pytest.mark.parametrize("watches", [False, True], ids=["job", "app"])
async def test_session_that_stays_open_is_believed_for_a_time(
    incus: Incus, session: OpenSession, monkeypatch: pytest.MonkeyPatch, watches: bool
) -> None:
    """A job's port is waited for by nobody; the wait for an app's has a limit of its own."""
    monkeypatch.setattr(module, "UNWATCHED_SECONDS", 1_000 if watches else 0.01)
    monkeypatch.setattr(module, "WATCHED_SECONDS", 0.01 if watches else 1_000)
    machine = await started(incus, session)
    incus.instances["s-1"]["status"] = "Stopped"

    async def until_ended() -> None:
        async with asyncio.timeout(10):
            while (await machine.sandboxes.report(ONE)).alive:
                await asyncio.sleep(0.001)

    if watches:
        with machine.sandboxes.deliveries.watch("s-1"):
            await until_ended()
    else:
        await until_ended()


async def test_wait_for_a_port_goes_on_after_the_time_of_a_job(
    incus: Incus, session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNWATCHED_SECONDS", 0.01)
    machine = await started(incus, session)
    deliveries = machine.sandboxes.deliveries
    with deliveries.watch("s-1"):
        await asyncio.sleep(0.03)
        assert deliveries.sockets("s-1") is not None
    monkeypatch.setattr(module, "REPORTED_SECONDS", 0)
    with deliveries.watch("s-1"):
        pass
    async with asyncio.timeout(10):
        while deliveries.sockets("s-1") is not None:
            await asyncio.sleep(0)


async def test_session_that_fails_has_incus_asked(incus: Incus, session: OpenSession) -> None:
    machine = await started(incus, session)

    async def fail() -> bytes:
        raise RuntimeError("closed")

    session.read = fail  # type: ignore[method-assign]
    session.pieces.put_nowait(OPEN + guest.TABLE_END)
    async with asyncio.timeout(10):
        while machine.sandboxes.deliveries.sockets("s-1") is not None:
            await asyncio.sleep(0)
    assert session.closed
