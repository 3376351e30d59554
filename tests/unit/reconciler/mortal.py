"""A service that is killed at a chosen point, as by SIGKILL: from there on it does nothing more, not even tidy up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from tests.application import World

from builderd.core.loops import no_fault
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.qa.job import Reporting
from builderd.reconciler.reconciler import Reconciler

T = TypeVar("T")


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


class MortalStore(Store):
    """The store of a process, on the connections of another: who is dead writes nothing and reads nothing."""

    def __init__(self, store: Store) -> None:
        vars(self).update(vars(store))
        self.dead = asyncio.Event()

    async def write(self, work: Callable[[UnitOfWork], T], *, durable: bool = True) -> T:
        self._fail_if_dead()
        return await super().write(work, durable=durable)

    async def read(self, work: Callable[[UnitOfWork], T]) -> T:
        self._fail_if_dead()
        return await super().read(work)

    async def ready(self) -> bool:
        return not self.dead.is_set()

    async def close(self) -> None:
        """Leave the world open: it belongs to the test."""

    def _fail_if_dead(self) -> None:
        if self.dead.is_set():
            raise Killed


class Life:
    """One life of the service, which ends at the ``nth`` time that it comes to the ``point``."""

    def __init__(self, world: World, point: str, nth: int) -> None:
        self._store = MortalStore(world.application.store)
        self._point = point
        self._left = nth
        self.world = world.another(self._store)
        fault = self.fault if point else no_fault
        self.reporting = Reporting(self.world.application, fault)
        self.reconciler = Reconciler(self.world.application, fault, self.reporting.request_report)

    def fault(self, point: str) -> None:
        if point != self._point or self.is_over:
            return
        self._left -= 1
        if self._left == 0:
            self._store.dead.set()
            raise Killed

    @property
    def works(self) -> bool:
        """Return True while it works on any builder."""
        return bool(self.reconciler._workers)

    @property
    def is_over(self) -> bool:
        return self._store.dead.is_set()


@asynccontextmanager
async def living(world: World, point: str = "", nth: int = 1) -> AsyncIterator[Life]:
    """A service lives until the block ends, or until it comes to the point for the ``nth`` time."""
    life = Life(world, point, nth)
    tasks = [asyncio.create_task(work) for work in (life.reconciler.run(), life.reporting.run())]
    try:
        yield life
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
