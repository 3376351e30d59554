"""The reconciler: one worker for each builder that something is wanted of, now or at its due time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial

from builderd.domain.builders import Desired, Status
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import Sandbox
from builderd.ports.store import UnitOfWork
from builderd.reconciler.faults import FaultPoint, no_fault
from builderd.reconciler.look import Subject
from builderd.reconciler.polishing import Polishing
from builderd.reconciler.sweep import sweep
from builderd.reconciler.worker import Worker
from builderd.services.application import Application

#: How long a builder may be due before it is looked at, in seconds.
POLL_INTERVAL = 0.5
#: Builders that are worked on at the same time.
MAX_WORKERS = 64

log = logging.getLogger(__name__)


class Reconciler:
    """``run`` goes on until it is cancelled; then the workers let go of their claims."""

    def __init__(self, application: Application, fault: FaultPoint = no_fault) -> None:
        self._app = application
        self._fault = fault
        self._workers: dict[BuilderId, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._polishing = Polishing(application)

    async def run(self) -> None:
        """Look at everything once, then at what is wished or due. The engine must be ready."""
        await sweep(self._app)
        helpers = [asyncio.create_task(self._watch_exits()), asyncio.create_task(self._polishing.run())]
        try:
            await self._loop()
        finally:
            for task in (*helpers, *self._tasks):
                task.cancel()
            await asyncio.gather(*helpers, *self._tasks, return_exceptions=True)

    async def _loop(self) -> None:
        while True:
            wished = await self._app.signals.wishes(POLL_INTERVAL)
            self._wake([*wished, *await self._app.store.read(self._due)])

    def _due(self, uow: UnitOfWork) -> Sequence[BuilderId]:
        return uow.builders.due(self._app.clock.now(), max(MAX_WORKERS - len(self._workers), 0))

    def _wake(self, builders: Iterable[BuilderId]) -> None:
        for builder_id in builders:
            worker = self._workers.get(builder_id)
            if worker is not None:
                worker.poke()
            elif len(self._workers) < MAX_WORKERS:
                self._employ(builder_id)

    def _employ(self, builder_id: BuilderId) -> None:
        worker = Worker(self._app, builder_id, self._app.instance, self._fault)
        self._workers[builder_id] = worker
        task = asyncio.create_task(self._work(builder_id, worker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, builder_id: BuilderId, worker: Worker) -> None:
        try:
            await worker.run(self._settled)
        except Exception:
            log.exception("the worker of builder %s failed", builder_id)
        finally:
            del self._workers[builder_id]
            if worker.poked:
                self._app.signals.wish(builder_id)

    def _settled(self, subject: Subject) -> None:
        if subject.builder.desired is Desired.RUNNING and subject.builder.status is Status.RUNNING:
            self._polishing.add(subject)

    async def _watch_exits(self) -> None:
        async for sandbox_id in self._app.engine.exits():
            sandbox = await self._app.store.read(partial(_sandbox, sandbox_id=sandbox_id))
            if sandbox is not None:
                self._app.signals.wish(sandbox.builder_id)


def _sandbox(uow: UnitOfWork, sandbox_id: SandboxId) -> Sandbox | None:
    return uow.sandboxes.get(sandbox_id)
