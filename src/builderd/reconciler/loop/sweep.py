"""The sweep: remove leaked sandboxes and routes, which have no record, and make due what may have something to do.

A change of a desired state makes its builder due in the same transaction. The sweep is for what that cannot cover: a
sandbox that ended while nobody watched, a route that is gone or open, a builder that a fault left without a due time.
A builder at rest, stopped as it should be, with its closed route, has nothing to do: it is only compared.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Sequence
from datetime import datetime
from functools import partial

from builderd.domain.errors import RecordDamaged
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.previews import RESTING_STATES
from builderd.services import bundles
from builderd.services.application import Application
from builderd.store import UnitOfWork

#: Builders that are made due in one transaction.
BATCH = 500

log = logging.getLogger(__name__)


async def sweep(application: Application, busy: Container[BuilderId]) -> None:
    """Make builders due that are not at rest, and remove sandboxes, routes and bundles that nothing refers to.

    Sandboxes of ``busy`` builders are left to those who work on them.
    """
    now = application.clock.now()
    await _make_due(application, await application.store.read(lambda uow: uow.builders.restless()), now)
    await _sweep_sandboxes(application, busy)
    await _sweep_routes(application, now)
    await _sweep_bundles(application)
    await bundles.expire(application)


async def _make_due(application: Application, found: Sequence[BuilderId], now: datetime) -> None:
    """Make builders due, so many in one transaction that others never wait long for the store's one writer."""
    for start in range(0, len(found), BATCH):
        batch = found[start : start + BATCH]
        for left in await application.store.write(partial(_make_all_due, builders=batch, now=now)):
            await application.store.write(partial(_make_one_due, builder=left, now=now))


def _make_all_due(uow: UnitOfWork, builders: Sequence[BuilderId], now: datetime) -> Sequence[BuilderId]:
    return uow.builders.make_all_due(builders, now)


def _make_one_due(uow: UnitOfWork, builder: BuilderId, now: datetime) -> None:
    uow.builders.make_due(builder, now)


async def _sweep_sandboxes(application: Application, busy: Container[BuilderId]) -> None:
    """Remove leaked sandboxes."""
    found = [report.id for report in await application.engine.sandboxes.list_sandboxes()]
    held = [one for one in found if one not in application.scratch]
    stray = await application.store.read(lambda uow: [one for one in held if _is_stray(uow, one, busy)])
    await asyncio.gather(*(_remove(application, sandbox_id) for sandbox_id in stray))


def _is_stray(uow: UnitOfWork, sandbox_id: SandboxId, busy: Container[BuilderId]) -> bool:
    """Return whether a sandbox should be removed: no record knows it, or it has ended and its builder is not busy.

    Sandboxes are recorded before they start, so an unrecorded one is a leak.
    """
    try:
        sandbox = uow.sandboxes.get(sandbox_id)
    except RecordDamaged:
        return False
    return sandbox is None or (sandbox.end is not None and sandbox.builder_id not in busy)


async def _remove(application: Application, sandbox_id: SandboxId) -> None:
    log.info("removing leaked sandbox sandbox=%s", sandbox_id)
    await application.engine.sandboxes.stop(sandbox_id, application.limits.stop_grace)
    await application.engine.sandboxes.remove(sandbox_id)


async def _sweep_routes(application: Application, now: datetime) -> None:
    """Remove routes without a builder; make builders due whose route is missing or may lead to a sandbox."""
    # In this order: a route is put only for a builder that is stored already.
    held = await application.previews.routes()
    hosts = await application.store.read(lambda uow: uow.builders.hosts())
    for host in held:
        if host not in hosts:
            log.info("removing unused route host=%s", host)
            await application.previews.remove(host)
    unsure = [one for host, one in hosts.items() if host not in held or held[host].state not in RESTING_STATES]
    await _make_due(application, unsure, now)


async def _sweep_bundles(application: Application) -> None:
    held = await application.bundles.hashes()
    used = await application.store.read(lambda uow: uow.versions.used_bundles(held))
    for bundle_hash in set(held).difference(used):
        log.info("removing unused bundle bundle=%s", bundle_hash)
        await bundles.drop_unused(application, bundle_hash)
