"""The sweep: remove leaked sandboxes and routes, which have no record, and make every builder due."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container
from datetime import datetime
from functools import partial

from builderd.domain.ids import BuilderId, SandboxId
from builderd.ports.store import UnitOfWork
from builderd.services import bundles, uploads
from builderd.services.application import Application

log = logging.getLogger(__name__)


async def sweep(application: Application, busy: Container[BuilderId]) -> None:
    """Make every builder due, and remove sandboxes, routes and bundles that nothing refers to.

    Sandboxes of ``busy`` builders are left to those who work on them.
    """
    now = application.clock.now()
    # One transaction each: holding one builder's lock while taking the next could deadlock.
    for builder_id in await application.store.read(lambda uow: uow.builders.ids()):
        await application.store.write(partial(_make_due, builder_id=builder_id, now=now))
    await _sweep_sandboxes(application, busy)
    await _sweep_routes(application)
    await _sweep_bundles(application)
    await uploads.expire(application)


def _make_due(uow: UnitOfWork, builder_id: BuilderId, now: datetime) -> None:
    uow.builders.make_due(builder_id, now)


async def _sweep_sandboxes(application: Application, busy: Container[BuilderId]) -> None:
    """Remove leaked sandboxes."""
    found = [report.id for report in await application.engine.list_sandboxes()]
    held = [one for one in found if one not in application.scratch]
    stray = await application.store.read(lambda uow: [one for one in held if _is_stray(uow, one, busy)])
    await asyncio.gather(*(_remove(application, sandbox_id) for sandbox_id in stray))


def _is_stray(uow: UnitOfWork, sandbox_id: SandboxId, busy: Container[BuilderId]) -> bool:
    """Return whether a sandbox should be removed: no record knows it, or it has ended and its builder is not busy.

    Sandboxes are recorded before they start, so an unrecorded one is a leak.
    """
    sandbox = uow.sandboxes.get(sandbox_id)
    return sandbox is None or (sandbox.end is not None and sandbox.builder_id not in busy)


async def _remove(application: Application, sandbox_id: SandboxId) -> None:
    log.info("removing leaked sandbox sandbox=%s", sandbox_id)
    await application.engine.stop(sandbox_id, application.limits.stop_grace)
    await application.engine.remove(sandbox_id)


async def _sweep_routes(application: Application) -> None:
    # In this order: a route is put only for a builder that is stored already.
    held = await application.previews.routes()
    hosts = await application.store.read(_hosts)
    for host in held:
        if host not in hosts:
            log.info("removing unused route host=%s", host)
            await application.previews.remove(host)


def _hosts(uow: UnitOfWork) -> frozenset[str]:
    builders = (uow.builders.get(builder_id) for builder_id in uow.builders.ids())
    return frozenset(builder.host for builder in builders if builder is not None)


async def _sweep_bundles(application: Application) -> None:
    held = await application.bundles.hashes()
    unused = await application.store.read(lambda uow: [one for one in held if not uow.versions.uses_bundle(one)])
    for bundle_hash in unused:
        log.info("removing unused bundle bundle=%s", bundle_hash)
        await bundles.drop_unused(application, bundle_hash)
