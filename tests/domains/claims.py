"""Claims of domains on the fakes: add one, let the job work, read what was stored."""

from __future__ import annotations

from tests.application import World

from builderd.builders.model import Builder
from builderd.builders.service import Caller
from builderd.domains import service as domains
from builderd.domains.model import Domain
from builderd.domains.renewal import DomainJob

HOST = "shop.example.com"


async def add(world: World, builder: Builder, host: str = HOST, caller: Caller | None = None) -> Domain:
    now = world.clock.now()
    made, _ = await world.application.store.write(
        lambda uow: domains.add(uow, world.application, caller or world.caller, builder.id, host, now)
    )
    return made


async def work(world: World, job: DomainJob | None = None) -> None:
    """Let the job take as many rounds as an order has steps."""
    job = job or DomainJob(world.application)
    for _ in range(3):
        await job.poll()
        await job.rest()


async def found(world: World, domain: Domain) -> Domain:
    seen = await world.read(lambda uow: uow.domains.get(domain.id))
    assert seen is not None
    return seen
