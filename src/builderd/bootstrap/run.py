"""Run the service once its process listens: start up, background workers, shutdown, and ``builderd down``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from builderd.application import Application
from builderd.backups.job import BackupSchedule
from builderd.backups.upkeep import BackupContext, adopt
from builderd.bootstrap.application import application, load_host_key
from builderd.bootstrap.data_directory import RESTORED, is_ours, lock
from builderd.bootstrap.database import note_database
from builderd.bootstrap.database_lease import OwnedStore, is_loss, owned_store
from builderd.bootstrap.domains import make_previews
from builderd.bootstrap.engines import make_engine
from builderd.bootstrap.serving import Supervisor, api_socket
from builderd.bootstrap.standby import works_elsewhere
from builderd.core.errors import BuilderdError, EngineUnavailable, NoCapacity
from builderd.core.loops import every, kill_at, no_fault, race
from builderd.database.sqlite import keep_room
from builderd.domains.renewal import DomainJob, PublicCertificateJob, WildcardJob
from builderd.events.retention import RetentionJob
from builderd.idle import job as idle
from builderd.idle.job import Idleness
from builderd.linux.clock import SystemClock
from builderd.mcp.http import McpEndpoint
from builderd.metrics.job import sample
from builderd.previews import service as preview_links
from builderd.qa.job import Reporting
from builderd.reconciler.reconciler import Reconciler
from builderd.server.app import create_app, metrics_app
from builderd.server.limits import REMOTE_SANDBOX_API, SANDBOX_API, Limiter
from builderd.server.listener import Servers
from builderd.server.meter import Meter
from builderd.server.operations import Operations
from builderd.server.rates import Rates
from builderd.server.sandbox_api import create_sandbox_app
from builderd.server.starting import ApiPort
from builderd.settings import Settings
from builderd.ssh.gateway import Gateway as SshGateway
from builderd.web.app import Site, create_web
from builderd.webhooks.job import WebhookJob

log = logging.getLogger(__name__)
#: Seconds until the next try when the engine cannot be prepared or the backups cannot be listed.
PREPARE_RETRY = 15.0
#: Seconds between two checks of the database for damage. The start of the service is the first one.
CHECK_INTERVAL = 86_400.0
#: Seconds between two looks at the room that the database has left on a full disk.
ROOM_INTERVAL = 60.0


async def take_down(settings: Settings, say: Callable[[str], None]) -> None:
    """Stop all apps and previews of this data directory and remove their mounts, links, cgroups and rules.

    Works without the database: apps must be stoppable while it is unavailable. While another service works on the same
    cluster, its apps go on.
    """
    if not is_ours(settings.data_dir):
        say(f"There is no builderd in {settings.data_dir}: nothing to stop.")
        return
    with lock(settings.data_dir):
        clock = SystemClock(settings.data_dir / "clock.json")
        engine = make_engine(settings, clock)
        try:
            say("Stopping the previews …")
            await make_previews(settings).down()
            if await works_elsewhere(settings):
                say("The apps go on: another service of the cluster works.")
                return
            say("Stopping the sandboxes …")
            await engine.down()
        finally:
            await engine.close()
            clock.save()
    say("Everything is stopped. `builderd serve` with the same data directory brings it back.")


async def run(
    settings: Settings, supervisor: Supervisor, servers: Servers, port: ApiPort, *, take_over: bool, new_database: bool
) -> None:
    """Run while this service owns the database. Raises as ``owned_store``, and ``LeaseLost`` once another one does."""
    async with owned_store(
        settings, supervisor, take_over=take_over, new_database=new_database, stand_by=port.stand_by
    ) as owned:
        try:
            await race(_run(settings, supervisor, servers, port, owned), owned.keep())
        except BaseException as error:
            if not is_loss(error):
                raise
            raise await owned.loss() from None


async def _run(settings: Settings, supervisor: Supervisor, servers: Servers, port: ApiPort, owned: OwnedStore) -> None:
    previews = make_previews(settings)
    async with application(settings, owned, previews) as app:
        note_database(settings)
        meter = Meter()
        operations = Operations(app, Rates(**settings.rates.model_dump()))
        api = create_app(operations, metrics_token=settings.metrics_token, meter=meter)
        site = Site(api, create_web(operations, meter=meter))
        # The servers are drained before the calls of agents that still go on are cut off.
        async with McpEndpoint(api), api.router.lifespan_context(api), servers:
            port.open(site)
            if settings.metrics_port:
                await servers.add(metrics_app(app, meter), settings.host, settings.metrics_port, "metrics_port")
            await app.previews.start(partial(preview_links.lost_routes, app.store))
            if settings.public_host:
                await port.listen_behind_proxy(*api_socket(settings))
            log.info("API listening host=%s port=%d", settings.host, settings.port)
            supervisor.ready()
            await _run_workers(app, owned, settings, servers)


async def _run_workers(app: Application, owned: OwnedStore, settings: Settings, servers: Servers) -> None:
    """Prepare the engine, then run the reconciler, the jobs, the SSH gateway and the sandbox API."""
    await _prepare(app)
    # The bridge of an evacuated member of a cluster, and the address with it, is away until the member is restored.
    sandbox_api, inside = create_sandbox_app(app), settings.inside_port
    await servers.add(
        sandbox_api, app.engine.sandboxes.gateway, inside, "inside_port", Limiter(SANDBOX_API), early=True
    )
    if address := app.engine.sandboxes.further_address:
        limits = Limiter(REMOTE_SANDBOX_API)
        await servers.add(create_sandbox_app(app), address, settings.inside_port, "inside_port", limits)
    fault = kill_at(settings.fault) if settings.fault else no_fault
    await _adopt_backups(app, settings.data_dir / RESTORED)
    async with asyncio.TaskGroup() as group:
        group.create_task(app.previews.supervise())
        group.create_task(_warm_up(app))
        reporting = Reporting(app, fault)
        group.create_task(reporting.run())
        group.create_task(Reconciler(app, fault, reporting.request_report).run())
        group.create_task(Idleness(app).watch())
        group.create_task(idle.watch(app))
        group.create_task(WebhookJob(app).run())
        group.create_task(DomainJob(app, fault).run())
        group.create_task(WildcardJob(app).run())
        group.create_task(PublicCertificateJob(app).run())
        if settings.ssh.port:
            gateway = SshGateway(app, load_host_key(settings))
            group.create_task(gateway.serve(settings.host, settings.ssh.port))
        group.create_task(sample(app))
        group.create_task(BackupSchedule(app, fault).run())
        group.create_task(RetentionJob(app).run())
        look = partial(asyncio.to_thread, keep_room, settings.database)
        group.create_task(every(ROOM_INTERVAL, look, event="room for a full disk"))
        group.create_task(every(CHECK_INTERVAL, owned.store.find_damage, event="check of the database"))


async def _warm_up(app: Application) -> None:
    """Start the review scanner ahead of the first review. When it cannot start, each review fails with the reason."""
    try:
        await app.review.prepare()
    except Exception:
        log.warning("review scanner not started, reviews will fail", exc_info=True)


async def _adopt_backups(app: Application, mark: Path) -> None:
    """List the backup repositories again after a restore of the state: they may have newer backups than the database.

    Runs before any app gets its disk from a backup.
    """
    while await asyncio.to_thread(mark.exists):
        try:
            await adopt(BackupContext(app))
            await asyncio.to_thread(mark.unlink)
        except BuilderdError as error:
            # The operator may remove the mark to start without the newer backups.
            log.warning("backups not listed, retrying delay=%g mark=%s error=%s", PREPARE_RETRY, mark, error.message)
            await asyncio.sleep(PREPARE_RETRY)


async def _prepare(app: Application) -> None:
    while True:
        try:
            await app.engine.prepare(log.info)
        except (EngineUnavailable, NoCapacity) as error:
            log.warning("engine not prepared, retrying delay=%g error=%s", PREPARE_RETRY, error.message)
            await asyncio.sleep(PREPARE_RETRY)
        else:
            return
