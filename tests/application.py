"""The application on fakes and a database in memory, and what a test does with it as a user would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, select
from tests.fake_application import make_application
from tests.fakes.bundles import FakeBundles
from tests.fakes.clock import FakeClock
from tests.fakes.domains import FakeAuthority, FakeNameServers, FakeProbe
from tests.fakes.engine import FakeEngine
from tests.fakes.installer import FakeInstaller
from tests.fakes.previews import FakePreviews
from tests.fakes.sandboxes import FakeSandbox
from tests.fakes.scanners import FakeScanner
from tests.fakes.testers import FakeTesters
from tests.stores import memory_store

from builderd.application import Application
from builderd.builders import outcomes
from builderd.builders import service as builders
from builderd.builders.model import Builder, JobType, Status
from builderd.builders.service import Caller, Command, NewBuilder
from builderd.builders.signals import Signals, StalledEnds
from builderd.builders.table import builders as builders_table
from builderd.code import service as bundles
from builderd.code.model import BundleFile, make_bundle
from builderd.code.space import SentCode
from builderd.core.ids import TenantId, new_id
from builderd.core.loops import FaultPoint, no_fault
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.domains.model import DomainRules
from builderd.events.model import Event
from builderd.money.model import Billing, Segment
from builderd.previews.model import Route, RouteState
from builderd.qa import inspection
from builderd.qa.job import Reporting
from builderd.reconciler import reconciler as reconciling
from builderd.reconciler.reconciler import Reconciler
from builderd.reconciler.steps import await_listening
from builderd.reconciler.steps.await_listening import HealthCheck
from builderd.sandboxes.model import LogLine, Sandbox
from builderd.tokens.limits import Limits
from builderd.tokens.model import Tenant
from builderd.versions import service as deployments
from builderd.versions.model import Version, VersionSettings
from builderd.versions.service import Change

T = TypeVar("T")

MAIN = BundleFile("main.py", b"print('hello')\n")
REQUIREMENTS = BundleFile("requirements.txt", b"flask\n")
ENTRYPOINT = "python3 main.py"
#: Against hanging only.
PATIENCE = 30.0
#: Seconds between two looks: soon at first, and then not so often that looking keeps what is waited for from its turn.
FIRST_PAUSE, LAST_PAUSE = 0.001, 0.02


def look_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at an app's port once: later looks take fake time alone, and would end what a test is about to look for."""

    async def look(application: Application, sandbox: Sandbox, version: Version, _: float) -> HealthCheck:
        listening = await application.engine.sandboxes.listening(sandbox.id, version.port)
        if not listening.reachable(version.port):
            await asyncio.Event().wait()
        return HealthCheck(True, listening, None, 0.0, version.port)

    for module in (await_listening, inspection):
        monkeypatch.setattr(module, "wait_until_listening", look)


@dataclass(slots=True)
class World:
    """The application, the fakes that it works on, and a caller of its one tenant."""

    application: Application
    engine: FakeEngine
    previews: FakePreviews
    bundles: FakeBundles
    installer: FakeInstaller
    testers: FakeTesters
    scanner: FakeScanner
    clock: FakeClock
    caller: Caller
    names: FakeNameServers
    probe: FakeProbe
    authority: FakeAuthority
    #: What the reconcilers that were ended in a test must not use any more.
    _instances: int = field(default=1)

    # What a user does

    async def ask(self, *files: BundleFile, name: str = "my-api", **settings: Any) -> Builder:
        """Create a builder, and do not wait."""
        bundle = make_bundle(files or (MAIN,))
        top = {
            key: settings.pop(key)
            for key in ("job_type", "visibility", "auto_stop_interval", "backup_interval_hours")
            if key in settings
        }
        new = NewBuilder(name, bundle.hash, VersionSettings(**{"entrypoint": ENTRYPOINT, **settings}), **top)
        now = self.clock.now()
        return await bundles.keep(
            self.application,
            SentCode(self.caller.tenant_id, bundle),
            lambda uow: builders.create(uow, self.application, self.caller, new, now),
        )

    async def ask_job(self, *files: BundleFile, **settings: Any) -> Builder:
        return await self.ask(*files, job_type=JobType.ONE_TIME, **settings)

    async def create(self, *files: BundleFile, **settings: Any) -> Builder:
        """Create a builder, and wait for its outcome; raises the failure of a stage."""
        return await self.outcome(await self.ask(*files, **settings))

    async def put(self, builder: Builder, *files: BundleFile, **change: Any) -> int:
        """Deploy a new version, and do not wait; its number."""
        bundle, now = make_bundle(files or (MAIN,)), self.clock.now()
        made: list[int | None] = []

        def deploy(uow: UnitOfWork) -> Builder:
            asked = Change.of({"bundle_hash": bundle.hash, **change})
            deployed = deployments.deploy(uow, self.application, self.caller, builder.id, asked, now)
            made.append(deployed.version)
            return deployed.builder

        await bundles.keep(self.application, SentCode(self.caller.tenant_id, bundle, builder.id), deploy)
        assert made[-1] is not None
        return made[-1]

    async def deployed(self, builder: Builder, number: int) -> Builder:
        """Return the builder once the version has an outcome; raise the failure of a stage."""
        async with asyncio.timeout(PATIENCE):
            return await outcomes.deployed(self.application, builder.id, number)

    async def deploy(self, builder: Builder, *files: BundleFile, **change: Any) -> Builder:
        """Deploy a new version, and wait for its outcome; raises the failure of a stage."""
        return await self.deployed(builder, await self.put(builder, *files, **change))

    async def configure(self, builder: Builder, **change: Any) -> Builder:
        """Change settings, and wait until they are in force; raises the failure of a stage."""
        return await self._changed(
            lambda uow, now: deployments.configure(
                uow, self.application, self.caller, builder.id, Change.of(change), now
            )
        )

    async def roll_back(self, builder: Builder, number: int) -> Builder:
        """Have an old version again, and wait until it is up; raises the failure of a stage."""
        return await self._changed(
            lambda uow, now: deployments.roll_back(uow, self.application, self.caller, builder.id, number, now)
        )

    async def _changed(self, change: Callable[[UnitOfWork, datetime], deployments.Deployed]) -> Builder:
        made: list[int | None] = []
        now = self.clock.now()

        def write(uow: UnitOfWork) -> Builder:
            deployed = change(uow, now)
            made.append(deployed.version)
            return deployed.builder

        builder = await self.application.commit(write)
        return builder if made[-1] is None else await self.deployed(builder, made[-1])

    async def want(self, command: Command, builder: Builder) -> Builder:
        """``builders.start``, ``stop``, ``restart`` or ``delete``, and do not wait."""
        now = self.clock.now()
        return await self.application.commit(lambda uow: command(uow, self.application, self.caller, builder.id, now))

    async def outcome(self, builder: Builder) -> Builder:
        """Return the builder once its present generation has an outcome; raise the failure of a stage."""
        async with asyncio.timeout(PATIENCE):
            return await outcomes.wait(self.application, builder.id, builder.generation)

    async def reached(self, command: Command, builder: Builder) -> Builder:
        """Ask for it, and wait until it is so."""
        wanted = await self.want(command, builder)
        async with asyncio.timeout(PATIENCE):
            return await outcomes.wait_until_settled(self.application, wanted.id, wanted.generation)

    # What a test looks at

    async def read(self, look: Callable[[UnitOfWork], T]) -> T:
        return await self.application.store.read(look)

    async def builder(self, builder: Builder) -> Builder:
        found = await self.read(lambda uow: uow.builders.get(builder.id))
        assert found is not None
        return found

    async def change(self, builder: Builder, **changes: Any) -> Builder:
        """The record alone, as if something had brought it about."""

        def write(uow: UnitOfWork) -> Builder:
            found = uow.builders.get(builder.id, lock=True)
            assert found is not None
            uow.builders.save(replace(found, **changes))
            return replace(found, **changes)

        return await self.application.store.write(write)

    async def version(self, builder: Builder) -> Version:
        found = await self.read(lambda uow: uow.versions.get(builder.id, builder.version))
        assert found is not None
        return found

    async def records(self, builder: Builder) -> Sequence[Sandbox]:
        return await self.read(lambda uow: uow.sandboxes.list(builder.id))

    async def segments(self, builder: Builder) -> Sequence[Segment]:
        """Return its segments of the ledger, which follow one another."""
        return [one for one in await self._ledger(builder) if one.billing is not Billing.TRIAL]

    async def trials(self, builder: Builder) -> Sequence[Segment]:
        """The segments of its trials, which lie beside the others."""
        return [one for one in await self._ledger(builder) if one.billing is Billing.TRIAL]

    async def _ledger(self, builder: Builder) -> Sequence[Segment]:
        return await self.read(lambda uow: uow.ledger.of_builder(builder.id))

    async def events(self, builder: Builder) -> Sequence[Event]:
        return await self.read(lambda uow: uow.events.of_builder(builder.id))

    async def build_log(self, builder: Builder) -> Sequence[LogLine]:
        return [line for _, _, line in await self.read(lambda uow: uow.build_logs.following(builder.id, 0, 10_000))]

    async def route(self, builder: Builder) -> Route | None:
        return await self.previews.get(builder.host)

    @property
    def running(self) -> Sequence[FakeSandbox]:
        """The sandboxes that run now."""
        return [sandbox for sandbox in self.engine.known.values() if sandbox.end is None]

    def called(self, method: str) -> int:
        """Return the number of the engine's calls of a method."""
        return sum(1 for name, _ in self.engine.calls if name == method)

    async def left(self) -> Mapping[str, Any]:
        """All that is not nothing in the world."""
        kept = {
            "sandboxes": self.engine.known,
            "disks": self.engine.known_disks,
            "logs": self.engine.known_logs,
            "routes": await self.previews.routes(),
            "bundles": self.bundles.stored,
        }
        return {name: what for name, what in kept.items() if what}

    async def until(self, holds: Callable[[], Any]) -> None:
        """Wait until this answers something true, now or, for a coroutine function, in a moment."""
        pause = FIRST_PAUSE
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = holds()
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer:
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, LAST_PAUSE)

    async def until_status(self, builder: Builder, status: Status) -> Builder:
        await self.until(lambda: self._has(builder, lambda now: now.status is status))
        return await self.builder(builder)

    async def until_reason(self, builder: Builder, text: str) -> None:
        """Wait until its reason contains this text."""
        await self.until(lambda: self._has(builder, lambda now: text in now.status_reason))

    async def _has(self, builder: Builder, what: Callable[[Builder], bool]) -> bool:
        return what(await self.builder(builder))

    async def until_route(self, builder: Builder, state: RouteState) -> Route:
        await self.until(lambda: self._shows(builder, state))
        found = await self.route(builder)
        assert found is not None
        return found

    async def _shows(self, builder: Builder, state: RouteState) -> bool:
        route = await self.route(builder)
        return route is not None and route.state is state

    async def until_nothing_runs(self) -> None:
        """Wait until nothing runs, and nothing is left of the sandboxes."""
        await self.until(lambda: not self.engine.known)

    async def until_nothing_is_left(self) -> None:
        try:
            await self.until(self._nothing_is_left)
        except TimeoutError:
            raise AssertionError(f"left: {await self.left()}; claims: {await self.read(_claims)}") from None

    async def _nothing_is_left(self) -> bool:
        return not await self.left()

    # The reconcilers

    @asynccontextmanager
    async def reconciling(self, fault: FaultPoint = no_fault) -> AsyncIterator[Reconciler]:
        """The reconciler works until the block ends."""
        reporting = Reporting(self.application, fault)
        reconciler = Reconciler(self.application, fault, reporting.request_report)
        tasks = [asyncio.create_task(work) for work in (reconciler.run(), reporting.run())]
        try:
            yield reconciler
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def another(self, store: Store | None = None) -> World:
        """Another control plane on the same database and the same fakes, as after a restart of the service."""
        self._instances += 1
        application = replace(
            self.application,
            store=store or self.application.store,
            signals=Signals(),
            instance=f"{self.application.instance}-{self._instances}",
            usage={},
            scratch=set(),
            stalled=StalledEnds(),
        )
        return replace(self, application=application)

    async def tenant(self, name: str) -> Caller:
        """A caller of a new tenant."""
        tenant = Tenant(TenantId(new_id()), name, self.clock.now())
        await self.application.store.write(lambda uow: uow.tenants.add(tenant))
        return Caller(tenant.id, f"token {name}")


def _claims(uow: UnitOfWork) -> Sequence[Any]:
    """Return the claims on builders and when they are due, for the message of a failed test."""
    connection: Connection = uow.builders._connection
    columns = builders_table.c
    wanted = select(columns.id, columns.desired, columns.claimed_by, columns.claimed_until, columns.due_at)
    return connection.execute(wanted).all()


@asynccontextmanager
async def fake_world(**limits: Any) -> AsyncIterator[World]:
    """Ready for builders; nothing reconciles yet."""
    clock = FakeClock()
    engine, previews, stored, installer = FakeEngine(clock.now), FakePreviews(), FakeBundles(), FakeInstaller()
    testers, scanner = FakeTesters(), FakeScanner()
    async with memory_store() as store:
        application = make_application(
            store,
            engine,
            previews,
            stored,
            installer,
            testers,
            scanner,
            clock,
            Limits(**{"qa_report": False, **limits}),
        )
        await engine.prepare(lambda _: None)
        await previews.start()
        nobody = Caller(TenantId(""), "")
        names, probe, authority = FakeNameServers(), FakeProbe(previews.challenges), FakeAuthority(clock.now)
        rules = DomainRules(("203.0.113.5", "2001:db8::5"), 80, 443, frozenset({"api.example.com"}), directory="ca")
        application = replace(
            application, domain_rules=rules, name_servers=names, challenge_probe=probe, authority=authority
        )
        world = World(
            application=application,
            engine=engine,
            previews=previews,
            bundles=stored,
            installer=installer,
            testers=testers,
            scanner=scanner,
            clock=clock,
            caller=nobody,
            names=names,
            probe=probe,
            authority=authority,
        )
        world.caller = await world.tenant("acme")
        yield world


def hurry(patch: Callable[[Any, str, float], None]) -> None:
    """Make waits in real time take no time; ``patch`` is ``monkeypatch.setattr``."""
    patch(reconciling, "POLL_INTERVAL", 0.03)
    patch(outcomes, "LOOK_INTERVAL", 0.02)
