"""The sweep at the start: what the world holds and no record knows is taken away, and everything is looked at."""

from __future__ import annotations

import logging
from datetime import datetime

from builderd.domain.ids import SandboxId
from builderd.ports.store import UnitOfWork
from builderd.services.application import Application

log = logging.getLogger(__name__)


async def sweep(application: Application) -> None:
    """Remove sandboxes and routes without a record, and make every builder due."""
    held = [report.id for report in await application.engine.list_sandboxes()]
    stray = await application.store.read(lambda uow: [one for one in held if _is_stray(uow, one)])
    for sandbox_id in stray:
        log.info("removing sandbox %s, which no record knows", sandbox_id)
        await application.engine.stop(sandbox_id, application.limits.stop_grace)
        await application.engine.remove(sandbox_id)
    await _sweep_routes(application)
    now = application.clock.now()
    await application.store.write(lambda uow: _make_all_due(uow, now))


def _is_stray(uow: UnitOfWork, sandbox_id: SandboxId) -> bool:
    sandbox = uow.sandboxes.get(sandbox_id)
    return sandbox is None or sandbox.end is not None


async def _sweep_routes(application: Application) -> None:
    hosts = await application.store.read(_live_hosts)
    for host in await application.previews.routes():
        if host not in hosts:
            await application.previews.remove(host)


def _live_hosts(uow: UnitOfWork) -> frozenset[str]:
    builders = (uow.builders.get(builder_id) for builder_id in uow.builders.ids())
    return frozenset(builder.host for builder in builders if builder is not None)


def _make_all_due(uow: UnitOfWork, now: datetime) -> None:
    for builder_id in uow.builders.ids():
        uow.builders.make_due(builder_id, now)
