"""A week in the life of a service: builders under random wishes, visits, exits, crashes, caps and set clocks.

A witness beside the engine, the events and the ledger must tell the same story of it, to the microsecond and to the
last digit. The seeds are fixed; what happens in between depends on the scheduling, and may not matter.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import pairwise

import pytest
from tests.application import ENTRYPOINT, PATIENCE, World
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.mortal import Killed, Life, living
from tests.unit.reconciler.witness import FROZEN, RUNNING, Span, Witness, microseconds, paid, told

from builderd.builders import service as builders
from builderd.builders.model import Builder, Desired, JobType, Status
from builderd.core.errors import BuilderdError, EngineUnavailable
from builderd.core.ids import BuilderId
from builderd.core.resources import Resources
from builderd.database.unit_of_work import UnitOfWork
from builderd.idle import service as wake
from builderd.idle.job import Idleness
from builderd.money import caps
from builderd.money.model import Account, Billing, Segment, month_of, next_month, tightest
from builderd.reconciler import reconciler as reconciling
from builderd.reconciler.worker import LEASE
from builderd.sandboxes.model import EndCause
from builderd.versions import service as deployments
from builderd.versions.model import Version
from builderd.versions.service import Change

WEEK = timedelta(days=7)
#: So that the week goes over the end of a month.
START = datetime(2030, 1, 28, tzinfo=UTC)
ALWAYS = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
COMMANDS = (builders.start, builders.start, builders.start, builders.stop, builders.restart, builders.delete)
SIZES = (Resources(0.25, 0.125, 1), Resources(1, 1, 3), Resources(2, 4, 10), Resources(0.3, 0.7, 1.1))
CAPS = (None, None, Decimal("0.50"), Decimal(2), Decimal(40))
STEPS = ("CreateDisk", "StartSandbox", "AwaitListening", "Settle", "StopSandbox", "RecordEnd", "Forget", "Cap")
BEHAVIOURS = (Behaviour(),) * 9 + (Behaviour(exits_at=0, exit_code=1), Behaviour(exits_at=5))
METHODS = ("start", "stop", "remove", "create_disk", "put_bundle", "delete_disk", "report", "freeze", "thaw")
MOST_BUILDERS = 8
STEPS_OF_A_LIFE = 40
#: In seconds.
TICK = 1e-6


class Week:
    def __init__(self, world: World, seed: int, steps: int) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.pace = WEEK.total_seconds() / steps
        self.witness = Witness(world.engine, tick=lambda: world.clock.move(TICK))
        self.made: list[Builder] = []

    async def live(self, most: int) -> int:
        """One life of the service, which may be killed at a random point of it; how many steps it took."""
        point = f"{self.chance.choice(STEPS)}.{self.chance.choice(('begun', 'done', 'recorded'))}"
        taken = 0
        async with living(self.world, self.chance.choice(("", point)), self.chance.randrange(1, 6)) as life:
            idleness = Idleness(life.world.application)
            while taken < most and not life.is_over:
                taken += 1
                with suppress(Killed, BuilderdError):
                    await self.happen(life.world)
                    await self.pass_time(life, idleness)
        self.world.clock.move(LEASE.total_seconds())
        return taken

    async def pass_time(self, life: Life, idleness: Idleness) -> None:
        for _ in range(self.chance.randrange(8)):
            await asyncio.sleep(0)
        if self.chance.random() < 0.7:
            await self.rest(life)
        self.world.clock.move(self.chance.expovariate(1 / self.pace))
        await idleness.check()

    async def rest(self, life: Life) -> None:
        """Run until nothing is left to do at this time, or for some moments."""
        for _ in range(100):
            if life.is_over or (not life.works and await self.world.read(self._is_at_rest)):
                return
            await asyncio.sleep(0.0005)

    def _is_at_rest(self, uow: UnitOfWork) -> bool:
        now = self.world.clock.now()
        return not uow.builders.due(now, 1) and not uow.tenants.spending_due(now)

    def _is_settled(self, uow: UnitOfWork) -> bool:
        live = uow.builders.of_tenant(self.world.caller.tenant_id, deleted=False)
        return self._is_at_rest(uow) and all(one.settled for one in live)

    async def happen(self, world: World) -> None:
        """One thing."""
        chance = self.chance
        live = [
            one for one in self.made[-3 * MOST_BUILDERS :] if (await world.builder(one)).desired is not Desired.DELETED
        ]
        match chance.randrange(20):
            case 0 | 1 | 2 if len(live) < MOST_BUILDERS:
                await self.create(world)
            case 3 | 4 | 5 | 6 if live:
                await world.want(chance.choice(COMMANDS), chance.choice(live))
            case 7 | 8 | 9 | 10 if live:
                await wake.visited(world.application, chance.choice(live).host)
            case 11 | 12 if world.running:
                cause = chance.choice((EndCause.EXITED, EndCause.OUT_OF_MEMORY))
                world.engine.end(chance.choice(world.running).spec.id, cause, chance.randrange(2))
            case 13 if chance.random() < 0.3:
                world.engine.restart_host()
            case 14:
                world.engine.fail_next(chance.choice(METHODS), EngineUnavailable("It does not answer."))
            case 16 | 17:
                whose = chance.choice(live) if live and chance.random() < 0.7 else None
                await self.cap(world, whose, chance.choice(CAPS))
            case 18 if live:
                await self.resize(world, chance.choice(live))
            case _:
                pass

    async def create(self, world: World) -> None:
        kind = self.chance.choice((world.ask, world.ask, world.ask, world.ask_job))
        minutes = 0 if kind == world.ask_job else self.chance.choice((0, 15, 240))
        name, size = f"app-{len(self.made)}", self.chance.choice(SIZES)
        self.made.append(await kind(name=name, resources=size, auto_stop_interval=minutes))

    async def cap(self, world: World, builder: Builder | None, amount: Decimal | None) -> None:
        now, application = world.clock.now(), world.application

        def write(uow: UnitOfWork) -> None:
            if builder is None:
                caps.set_for_tenant(uow, application, world.caller.tenant_id, amount, now)
                return
            found = builders.get(uow, world.caller.tenant_id, builder.id, lock=True)
            caps.set_for_builder(uow, application, found, amount, now)

        await application.store.write(write)

    async def resize(self, world: World, builder: Builder) -> None:
        """Resize a builder that rests: its next generation has other rates."""
        now, application = world.clock.now(), world.application
        found = await world.builder(builder)
        if found.desired is Desired.STOPPED and found.settled:
            size = self.chance.choice(SIZES)
            change = Change.of({"resources": {"cpu": size.cpu, "memory": size.memory}})
            await application.store.write(
                lambda uow: deployments.configure(uow, application, world.caller, builder.id, change, now)
            )

    # What holds of it

    async def come_to_rest(self) -> None:
        """Everything ends where it was wanted."""
        self.world.engine._failures.clear()
        self.world.engine.behave(ENTRYPOINT, Behaviour())
        async with living(self.world) as life, asyncio.timeout(PATIENCE):
            while life.works or not await self.world.read(self._is_settled):
                self.world.clock.move(1)
                await asyncio.sleep(0.002)

    async def check(self) -> None:
        """The ledger, the events and the witness agree on each builder, and on all together."""
        now = self.world.clock.now()
        sums: dict[BuilderId, Fraction] = {}
        this_month: Fraction = Fraction(0)
        for builder in self.made:
            segments = await self.world.segments(builder)
            spans = told(await self.world.events(builder))
            self.check_order(await self.world.builder(builder), segments)
            self.check_spans(builder.id, spans, segments)
            rates = await self.rates(builder)
            sums[builder.id] = self.due(spans, segments, rates, ALWAYS)
            this_month += self.due(spans, segments, rates, (month_of(now), next_month(now)))
            await self.check_status(builder)
        await self.check_sums(sums, this_month, now)

    def check_order(self, builder: Builder, segments: Sequence[Segment]) -> None:
        """No two overlap, and nothing lies between them but a job's rest."""
        for earlier, later in pairwise(segments):
            assert earlier.end is not None
            assert earlier.start <= earlier.end <= later.start
            gap = microseconds(earlier.end, later.start, later.start, ALWAYS)
            assert gap == 0 or builder.job_type is JobType.ONE_TIME
        if segments:
            assert self.witness.disks[builder.disk] <= segments[0].start

    def check_spans(self, builder: BuilderId, spans: Sequence[Span], segments: Sequence[Segment]) -> None:
        """Check that running, recorded and billed spans are the same, and as long."""
        seen = sorted((one.state, one.start, one.end) for one in self.witness.spans(builder) if one.end)
        assert sorted((one.state, one.start, one.end) for one in spans if one.end) == seen
        for state, billing in ((RUNNING, Billing.RUNNING), (FROZEN, Billing.FROZEN)):
            lived = sum(self.time(one.start, one.end, ALWAYS) for one in spans if one.state == state)
            assert sum(self.time(one.start, one.end, ALWAYS) for one in segments if one.billing is billing) == lived

    def time(self, start: datetime, end: datetime | None, within: tuple[datetime, datetime]) -> int:
        return microseconds(start, end, self.world.clock.now(), within)

    async def rates(self, builder: Builder) -> Mapping[tuple[int, str], Fraction]:
        """Return the rates by version and state, from the price list."""
        versions = await self.world.read(lambda uow: uow.versions.list(builder.id))
        return {(one.number, state): _rate(one, state) for one in versions for state in (RUNNING, FROZEN, "stopped")}

    def due(
        self,
        spans: Sequence[Span],
        segments: Sequence[Segment],
        rates: Mapping[tuple[int, str], Fraction],
        within: tuple[datetime, datetime],
    ) -> Fraction:
        """Return the amount due by the events: each span at its version's rate, and the disk for all the rest."""
        active = [(self.time(one.start, one.end, within), rates[one.version, one.state]) for one in spans]
        whole = sum(self.time(one.start, one.end, within) for one in segments)
        rest = whole - sum(time for time, _ in active)
        return paid([*active, (rest, rates[1, "stopped"])])

    async def check_status(self, builder: Builder) -> None:
        """The events lead to the status that it has."""
        status = Status.CREATING.value
        for event in await self.world.events(builder):
            if event.type == "builder.status":
                assert event.details["from"] == status
                status = event.details["to"]
        assert (await self.world.builder(builder)).status == status

    async def check_sums(self, sums: Mapping[BuilderId, Fraction], this_month: Fraction, now: datetime) -> None:
        tenant = self.world.caller.tenant_id
        totals = await self.world.read(lambda uow: uow.ledger.totals(list(sums), now))
        for builder, due in sums.items():
            found = Fraction(totals[builder].paid) / 3600 if builder in totals else Fraction(0)
            assert found == due
        month = await self.world.read(lambda uow: uow.ledger.month_of_tenant(tenant, now))
        assert Fraction(month.paid) / 3600 == this_month

    async def check_rest(self) -> None:
        """Check that at rest, running builders are billed as running, and none is over its cap."""
        for made in self.made:
            builder, segments = await self.world.builder(made), await self.world.segments(made)
            runs = any(one.spec.builder_id == made.id for one in self.world.running)
            is_paid = bool(segments) and segments[-1].end is None and segments[-1].billing is not Billing.STOPPED
            assert (builder.status is Status.RUNNING, is_paid) == (runs, runs)
            assert not (runs and tightest(await self.world.read(partial(self.accounts, builder=builder))))

    def accounts(self, uow: UnitOfWork, builder: Builder) -> Sequence[Account]:
        tenant = uow.tenants.get(self.world.caller.tenant_id)
        assert tenant is not None
        return caps.accounts(uow, self.world.application, tenant, builder, self.world.clock.now())


def _rate(version: Version, state: str) -> Fraction:
    size = version.settings.resources
    cpu = Fraction(str(size.cpu)) * Fraction("0.12") if state == RUNNING else 0
    memory = Fraction(str(size.memory)) * Fraction("0.06") if state != "stopped" else 0
    return cpu + memory + Fraction(str(size.disk)) * Fraction("0.0055")


async def spend_a_week(world: World, seed: int, steps: int) -> None:
    world.clock.move((START - world.clock.now()).total_seconds())
    world.engine.behave(ENTRYPOINT, *random.Random(seed).choices(BEHAVIOURS, k=steps), Behaviour())
    week = Week(world, seed, steps)
    left = steps
    while left > 0:
        left -= await week.live(min(left, STEPS_OF_A_LIFE))
    await week.come_to_rest()
    assert world.clock.now() > START + WEEK / 2
    await week.check()
    await week.check_rest()
    # What runs at the end of it, the lowest of caps stops.
    await week.cap(world, None, None)
    week.made.append(await world.ask(name="last"))
    await week.come_to_rest()
    assert (await world.builder(week.made[-1])).status is Status.RUNNING
    await week.cap(world, None, Decimal(0))
    await week.come_to_rest()
    await week.check_rest()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "POLL_INTERVAL", 0.005)


@pytest.mark.parametrize(
    ("seed", "steps"), [(1, 80), *(pytest.param(seed, 200, marks=pytest.mark.slow) for seed in (1, 2))]
)
async def test_a_week_in_few_steps(world: World, seed: int, steps: int) -> None:
    await spend_a_week(world, seed, steps)


@pytest.mark.slow
async def test_a_week_in_10_000_steps(world: World) -> None:
    await spend_a_week(world, seed=3, steps=10_000)
