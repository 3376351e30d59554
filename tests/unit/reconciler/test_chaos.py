"""Several builders under random wishes, exits, restarts of the machine and kills of the service: all ends well.

The seeds are fixed, so that a failure comes again; what happens in between depends on the scheduling, and may not.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
from tests.application import ENTRYPOINT, MAIN, PATIENCE, REQUIREMENTS, World
from tests.fakes.sandboxes import Behaviour
from tests.unit.reconciler.ledgers import check_ledger
from tests.unit.reconciler.mortal import Killed, living

from builderd.domain.builders import Builder, Desired, Status
from builderd.domain.errors import BuilderdError, EngineUnavailable
from builderd.domain.previews import RouteState
from builderd.domain.sandboxes import EndCause
from builderd.reconciler.core.claim import LEASE
from builderd.services import builders

COMMANDS = (builders.start, builders.stop, builders.restart, builders.delete)
STEPS = (
    "SetRoute",
    "Review",
    "Install",
    "CreateDisk",
    "PutBundle",
    "PlanSandbox",
    "StartSandbox",
    "AwaitListening",
    "Settle",
)
LATER_STEPS = ("StopSandbox", "RecordEnd", "RemoveRoute", "Forget", "GiveUp")
BEHAVIOURS = (Behaviour(),) * 6 + (Behaviour(exits_at=0, exit_code=1), Behaviour(exits_at=4), Behaviour(listens_at=20))
METHODS = ("start", "stop", "remove", "create_disk", "put_bundle", "delete_disk", "report")


class Chaos:
    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.builders: list[Builder] = []

    async def strike(self, world: World) -> None:
        """One thing happens."""
        match self.chance.randrange(10):
            case 0 | 1:
                number = len(self.builders)
                kind = self.chance.choice((world.ask, world.ask, world.ask_job))
                self.builders.append(await kind(MAIN, *self.chance.choice(((), (REQUIREMENTS,))), name=f"app-{number}"))
            case 2 | 3 | 4 | 5 if self.builders:
                with suppress(BuilderdError):
                    await world.want(self.chance.choice(COMMANDS), self.chance.choice(self.builders))
            case 6 if world.running:
                sandbox = self.chance.choice(world.running)
                cause = self.chance.choice((EndCause.EXITED, EndCause.OUT_OF_MEMORY))
                world.engine.end(sandbox.spec.id, cause, self.chance.randrange(3))
            case 7:
                if self.chance.random() < 0.3:
                    world.engine.restart_host()
            case 8:
                world.engine.fail_next(self.chance.choice(METHODS), EngineUnavailable("It does not answer."))
            case _:
                world.clock.move(self.chance.random() * 10)
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0.0003)

    async def live(self, events: int) -> None:
        """The service lives through some events, or is killed at a random point."""
        point = f"{self.chance.choice((*STEPS, *LATER_STEPS))}.{self.chance.choice(('begun', 'done', 'recorded'))}"
        async with living(self.world, self.chance.choice(("", point)), self.chance.randrange(1, 4)) as life:
            for _ in range(events):
                if not life.is_over:
                    with suppress(Killed):
                        await self.strike(life.world)
        self.world.clock.move(LEASE.total_seconds())


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
async def test_any_history_settles_in_the_desired_state(world: World, seed: int) -> None:
    world.engine.behave(ENTRYPOINT, *random.Random(seed).choices(BEHAVIOURS, k=60), Behaviour())
    chaos = Chaos(world, seed)
    for _ in range(4):
        await chaos.live(events=25)
    world.engine._failures.clear()
    world.engine.behave(ENTRYPOINT, Behaviour())
    async with living(world) as life:
        async with asyncio.timeout(PATIENCE):
            while not await all_whole(life.world, chaos.builders):
                world.clock.move(1)
                await asyncio.sleep(0.003)
        for builder in chaos.builders:
            await check_ledger(world, builder)
            with suppress(BuilderdError):
                await life.world.reached(builders.delete, builder)
        await life.world.until_nothing_is_left()
    for builder in chaos.builders:
        await check_ledger(world, builder)


async def all_whole(world: World, made: list[Builder]) -> bool:
    return all([await is_whole(world, await world.builder(builder)) for builder in made])


async def is_whole(world: World, builder: Builder) -> bool:
    if not builder.settled:
        return False
    mine = [sandbox for sandbox in world.engine.known.values() if sandbox.spec.builder_id == builder.id]
    route = await world.route(builder)
    if builder.status is Status.DELETED:
        return not mine and route is None and builder.disk not in world.engine.known_disks
    assert route is not None or builder.desired is not Desired.DELETED
    if builder.status is Status.RUNNING and route is not None and route.state is RouteState.OPEN:
        assert route.destination is not None
        return [(one.ip, one.end) for one in mine] == [(route.destination.ip, None)]
    if builder.status is Status.RUNNING:
        return route is not None and route.state is RouteState.JOB and len(mine) == 1
    return not mine and route is not None and route.state is not RouteState.OPEN
