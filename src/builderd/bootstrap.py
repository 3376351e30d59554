"""Puts the house together: the only file that knows every adapter, and the life of the service's process."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import Any

import asyncssh
import yaml

from builderd.adapters.archives.restic.archive import ResticArchive
from builderd.adapters.archives.restic.command import Place
from builderd.adapters.bundles.local import LocalBundles
from builderd.adapters.clocks.system import SystemClock
from builderd.adapters.engines.oci import holdings
from builderd.adapters.engines.oci import probe as engine_probe
from builderd.adapters.engines.oci.allocations import sandbox_networks
from builderd.adapters.engines.oci.base import ensure_base, find_host_base
from builderd.adapters.engines.oci.engine import OciEngine
from builderd.adapters.engines.oci.machine import OciSettings
from builderd.adapters.engines.oci.store import StoreOptions
from builderd.adapters.installers.installers import Installers
from builderd.adapters.installers.npm import NpmInstaller
from builderd.adapters.installers.uv import UvInstaller
from builderd.adapters.previews.haproxy import probe as previews_probe
from builderd.adapters.previews.haproxy.options import ProxyOptions
from builderd.adapters.previews.haproxy.previews import HaproxyPreviews
from builderd.adapters.scanners.language_model.adviser import Endpoint, LanguageModelAdviser
from builderd.adapters.scanners.tripwire.scanner import TripwireScanner
from builderd.adapters.scanners.tripwire.toolbox import Toolbox, find_toolbox
from builderd.adapters.signals.local import LocalSignals
from builderd.adapters.stores.sql.store import SqlStore
from builderd.adapters.testers.local import LocalTesters
from builderd.adapters.uploads.local import LocalUploads
from builderd.adapters.vaults.keys import GivenKeys, Key, KeyFile
from builderd.adapters.vaults.sodium import SodiumVault
from builderd.adapters.webhooks.http import HttpWebhookSender
from builderd.data_directory import RESTORED, hold, identity, make, refuse_half_restored
from builderd.domain import ssh
from builderd.domain.builders import Desired
from builderd.domain.bundles import Bundle
from builderd.domain.equipment import Equipment
from builderd.domain.errors import BuilderdError, EngineUnavailable, NoCapacity, ValidationFailed
from builderd.domain.holdings import Inventory
from builderd.domain.ids import TokenId
from builderd.domain.previews import Route
from builderd.domain.resources import GB
from builderd.domain.review_policies import Policy, make_policy
from builderd.domain.reviews import Report
from builderd.domain.steps import closed_route
from builderd.domain.tokens import Scope, Token
from builderd.doors.http.app import create_app, metrics_app
from builderd.doors.http.inside import create_inside_app
from builderd.doors.http.meter import Meter
from builderd.doors.http.rates import Rates
from builderd.doors.http.request_log import RequestIdFilter
from builderd.doors.http.servers import Servers
from builderd.doors.ssh import host_key
from builderd.doors.ssh.gateway import Gateway as SshGateway
from builderd.ports.engine import Engine
from builderd.ports.store import UnitOfWork
from builderd.reconciler import waking
from builderd.reconciler.backups.adopting import adopt
from builderd.reconciler.backups.desk import Desk
from builderd.reconciler.backups.schedule import BackupSchedule
from builderd.reconciler.deliveries import Deliveries
from builderd.reconciler.faults import kill_at, no_fault
from builderd.reconciler.housekeeping import Housekeeping
from builderd.reconciler.idle import Idleness
from builderd.reconciler.reconciler import Reconciler
from builderd.reconciler.sampling import sample
from builderd.services import inventory, reviews, tokens, vault
from builderd.services.application import Application
from builderd.settings import Settings

log = logging.getLogger(__name__)

#: The review's policy where the operator has none.
DEFAULT_POLICY = Path(__file__).with_name("review_policy.yaml")
#: After the engine could not be prepared, try again after so many seconds.
PREPARE_RETRY = 15.0
#: Longer than it takes from sealing a secret to its commit, in seconds.
SEAL_PAUSE = 2.0
#: Calls that wait for an app get so many seconds to be answered once the service is asked to end.
DRAIN = 5


@asynccontextmanager
async def application(settings: Settings) -> AsyncIterator[Application]:
    """The application on its real adapters; nothing is started yet but the store, which is brought up to date."""
    async with store(settings) as opened:
        clock = SystemClock(settings.data_dir / "clock.json")
        engine, testers = make_engine(settings, clock), LocalTesters(settings.qa.chromium)
        review = make_review_gate(settings)
        keeping = asyncio.create_task(clock.keeping())
        try:
            yield Application(
                store=opened,
                engine=engine,
                previews=make_previews(settings),
                bundles=LocalBundles(settings.data_dir / "bundles"),
                uploads=LocalUploads(settings.data_dir / "uploads", int(settings.store.floor * GB)),
                public_url=settings.public_url,
                upload_rules=settings.to_upload_rules(),
                archive_limits=settings.to_archive_limits(),
                installer=Installers(
                    UvInstaller(version("uv"), settings.package_index), NpmInstaller(settings.npm_registry)
                ),
                testers=testers,
                review=review,
                signals=LocalSignals(),
                clock=clock,
                vault=make_vault(settings),
                webhooks=HttpWebhookSender(settings.webhooks.allow, sandbox_networks),
                limits=settings.to_limits(),
                prices=settings.to_prices(),
                allowances=settings.to_allowances(),
                ssh=_ssh_gateway(settings),
                preview_domain=settings.preview_domain,
                instance=identity(settings.data_dir),
                archive=make_archive(settings, engine),
                backup_rules=settings.backup.to_rules(),
                keeping=settings.to_keeping(),
            )
        finally:
            keeping.cancel()
            await testers.close()
            await review.close()
            await engine.close()
            clock.keep()


@asynccontextmanager
async def store(settings: Settings) -> AsyncIterator[SqlStore]:
    """The store at its present revision."""
    make(settings.data_dir)
    refuse_half_restored(settings.data_dir)
    opened = SqlStore(settings.database)
    try:
        await opened.migrate()
        yield opened
    finally:
        await opened.close()


def _ssh_gateway(settings: Settings) -> ssh.Gateway | None:
    """What callers are told of the gateway, or None where there is none."""
    if not settings.ssh.port:
        return None
    host = settings.ssh.public_host or (gethostname() if is_wildcard(settings.host) else settings.host)
    return host_key.gateway(_host_key(settings), host, settings.ssh.public_port or settings.ssh.port)


def _host_key(settings: Settings) -> asyncssh.SSHKey:
    return host_key.load(settings.data_dir / "ssh_host_key")


def is_wildcard(host: str) -> bool:
    """Whether it stands for all addresses of the machine, and so is no address to call."""
    return host in ("", "0.0.0.0", "::")  # noqa: S104 -- compared, not bound


def make_vault(settings: Settings) -> SodiumVault:
    """Raises ``ValidationFailed`` when a key that was given is none."""
    if settings.vault.key is None:
        return SodiumVault(KeyFile(settings.vault_key_file))
    texts = [settings.vault.key, *settings.vault.previous_keys]
    try:
        return SodiumVault(GivenKeys(tuple(Key.from_text(text.get_secret_value()) for text in texts)))
    except ValueError as error:
        raise ValidationFailed({"vault.key": [str(error)]}) from None


def make_archive(settings: Settings, engine: Engine) -> ResticArchive:
    """Raises ``ValidationFailed`` when a file that it needs cannot be read."""
    root, floor = _backups(settings), int(settings.store.floor * GB)
    return ResticArchive(engine, make_place(settings), root, name=identity(settings.data_dir)[:13], floor_bytes=floor)


def make_place(settings: Settings) -> Place:
    """Where the repositories of the apps' backups are."""
    backup = settings.backup
    return Place(
        location=backup.repository or str(_backups(settings) / "repositories"),
        environment={name: value.get_secret_value() for name, value in backup.environment.items()},
        ssh_key=_text("backup.ssh_key", backup.ssh_key),
        ssh_hosts=_text("backup.ssh_hosts", backup.ssh_hosts),
    )


def _backups(settings: Settings) -> Path:
    return settings.data_dir.absolute() / "backups"


def _text(setting: str, file: Path | None) -> str:
    try:
        return file.read_text().strip() if file else ""
    except OSError as error:
        raise ValidationFailed({setting: [f"{file} cannot be read: {error.strerror}"]}) from None


def make_engine(settings: Settings, clock: SystemClock) -> OciEngine:
    store, egress = settings.store, settings.egress
    return OciEngine(
        OciSettings(
            data_dir=settings.data_dir.absolute(),
            inside_port=settings.inside_port,
            allow=egress.allow,
            deny=egress.deny,
            log_limit=int(settings.limits.log * 1_000_000),
            now=clock.seconds,
            at=clock.at,
            store=StoreOptions(
                device=store.device,
                size_bytes=int(store.size * GB) if store.size else None,
                floor_bytes=int(store.floor * GB),
                overcommit=store.overcommit,
            ),
        )
    )


def make_previews(settings: Settings) -> HaproxyPreviews:
    options = ProxyOptions(
        host=settings.host,
        port=settings.preview_port,
        certificate=settings.preview.certificate,
        trusted_proxies=settings.preview.trusted_proxies,
        api_url=settings.api_url,
    )
    return HaproxyPreviews(settings.data_dir / "previews", options)


def make_scanner() -> TripwireScanner:
    """Judges by the interpreters of the base that apps run on, where that has been made already."""

    def find() -> Toolbox:
        base, node = find_host_base(), shutil.which("node")
        return find_toolbox(base.root if base else None, Path(node) if node else None)

    return TripwireScanner(find)


def make_review_gate(settings: Settings) -> reviews.Gate:
    """Raises ``ValidationFailed`` when the operator's policy is none."""
    return reviews.Gate(make_scanner(), make_review_policy(settings), make_adviser(settings))


def make_adviser(settings: Settings) -> LanguageModelAdviser | None:
    """The language model that reads along, where the operator has named one."""
    review = settings.review
    if review.model_url is None or review.model is None:
        return None
    key = review.model_key.get_secret_value() if review.model_key else None
    return LanguageModelAdviser(Endpoint(review.model_url, review.model, key, review.model_timeout))


def make_review_policy(settings: Settings) -> Policy:
    """The operator's, or the default. Raises ``ValidationFailed`` that says what is wrong with it."""
    file = settings.review.policy or DEFAULT_POLICY
    try:
        document = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValidationFailed({"review.policy": [f"{file} cannot be read as YAML: {error}"]}) from None
    return make_policy(document)


# The service


def serve(settings: Settings) -> None:
    """Run the service until SIGTERM or SIGINT. Apps and previews go on when it ends."""
    make(settings.data_dir)
    _log_to_stderr(settings.log_level)
    with hold(settings.data_dir):
        asyncio.run(_serve(settings))


def _log_to_stderr(level: str) -> None:
    """One line a record, with the id of the request that it belongs to. Callers' secrets are in none of them."""
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s [%(request_id)s] %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # The door writes a line for each request itself, and those that the service makes are told by what they are for.
    for talker in ("uvicorn", "alembic", "asyncssh", "httpx"):
        logging.getLogger(talker).setLevel(logging.WARNING)


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with application(settings) as app, Servers() as servers:
        meter = Meter()
        api = create_app(
            app, metrics_token=settings.metrics_token, meter=meter, rates=Rates(**settings.rates.model_dump())
        )
        await servers.add(api, settings.host, settings.port)
        if settings.metrics_port:
            await servers.add(metrics_app(app, meter), settings.host, settings.metrics_port)
        await app.previews.start(await app.store.read(_expected_routes))
        log.info("The API listens on http://%s:%d", settings.host, settings.port)
        await _until(stopping, _work(app, settings, servers))
        log.info("The service ends; apps and previews go on.")


def _expected_routes(uow: UnitOfWork) -> Sequence[Route]:
    """Of every builder, for a preview that was taken down and knows none."""
    builders = (uow.builders.get(builder_id) for builder_id in uow.builders.ids())
    return [closed_route(one) for one in builders if one is not None and one.desired is not Desired.DELETED]


async def _until(stopping: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run the work until it is to stop; raises what the work raises."""
    task, stop = asyncio.create_task(work), asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for one in (task, stop):
            one.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)


async def _work(app: Application, settings: Settings, servers: Servers) -> None:
    """Prepare the engine, then keep builders as they are wanted."""
    await _prepare(app)
    await servers.add(create_inside_app(app), app.engine.gateway, settings.inside_port)
    fault = kill_at(settings.fault) if settings.fault else no_fault
    await _adopt_backups(app, settings.data_dir / RESTORED)
    async with asyncio.TaskGroup() as group:
        group.create_task(_warm_up(app))
        group.create_task(Reconciler(app, fault).run())
        group.create_task(Idleness(app).watch())
        group.create_task(waking.watch(app))
        group.create_task(Deliveries(app).run())
        if settings.ssh.port:
            group.create_task(SshGateway(app, _host_key(settings)).serve(settings.host, settings.ssh.port))
        group.create_task(sample(app))
        group.create_task(BackupSchedule(app, fault).run())
        group.create_task(Housekeeping(app).run())


async def _warm_up(app: Application) -> None:
    """The first review need not wait for the scanner. One that cannot be had fails each review, and says why."""
    try:
        await app.review.prepare()
    except Exception:
        log.warning("The scanner of reviews cannot be started: nothing will pass.", exc_info=True)


async def _adopt_backups(app: Application, mark: Path) -> None:
    """After a restore of the state, and before any app gets its disk from a backup: there may be newer ones."""
    while await asyncio.to_thread(mark.exists):
        try:
            await adopt(Desk(app))
            await asyncio.to_thread(mark.unlink)
        except BuilderdError as error:
            log.warning(
                *("The backups cannot be looked at: %s Trying again in %g s; remove %s to go on without.",),
                *(error.message, PREPARE_RETRY, mark),
            )
            await asyncio.sleep(PREPARE_RETRY)


async def _prepare(app: Application) -> None:
    while not app.engine.readiness().ready:
        try:
            await app.engine.prepare(log.info)
        except (EngineUnavailable, NoCapacity) as error:
            log.warning("The engine cannot be prepared: %s Trying again in %g s.", error.message, PREPARE_RETRY)
            await asyncio.sleep(PREPARE_RETRY)


# The other commands


async def take_down(settings: Settings, say: Callable[[str], None]) -> None:
    """Stop everything of this data directory and give back to the host what it was given."""
    with hold(settings.data_dir):
        async with application(settings) as app:
            say("Stopping the previews …")
            await app.previews.down()
            say("Stopping the sandboxes …")
            await app.engine.down()


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """``expires_at`` None: never."""

    tenant: str
    name: str
    scopes: frozenset[Scope]
    expires_at: datetime | None


async def make_token(settings: Settings, wanted: TokenRequest) -> tuple[Token, str]:
    """The token and its secret. The tenant is made if needed."""
    now = SystemClock().now()

    def create(uow: UnitOfWork) -> tuple[Token, str]:
        return tokens.create(uow, wanted.tenant, wanted.name, now, scopes=wanted.scopes, expires_at=wanted.expires_at)

    async with store(settings) as opened:
        return await opened.write(create)


async def list_tokens(settings: Settings, tenant: str) -> Sequence[Token]:
    """The tenant's tokens, revoked ones included."""
    async with store(settings) as opened:
        return await opened.read(lambda uow: tokens.list_of(uow, tenant))


async def revoke_token(settings: Settings, tenant: str, token_id: str) -> None:
    """End a token at once."""
    now = SystemClock().now()
    async with store(settings) as opened:
        await opened.write(lambda uow: tokens.revoke(uow, tenant, TokenId(token_id), now))


async def rotate_vault(settings: Settings, say: Callable[[str], None]) -> int:
    """Seal everything with a new key, also while the service runs; how many secrets those were.

    The keys before go from their file last, when nothing is sealed with them. A service that read the file a moment
    ago may still write a secret with one of them: hence the pause, and a second round.
    """
    file = KeyFile(settings.vault_key_file) if settings.vault.key is None else None
    if file is not None:
        file.save([Key.new(), *file.load()])
    async with store(settings) as opened:
        safe = make_vault(settings)
        say("Sealing …")
        count = await opened.write(lambda uow: vault.reseal(uow, safe))
        await asyncio.sleep(SEAL_PAUSE)
        count += await opened.write(lambda uow: vault.reseal(uow, safe))
    if file is not None:
        file.save(file.load()[:1])
    return count


async def review_code(settings: Settings, bundle: Bundle, entrypoint: str) -> Report:
    """What the review says of this code, before anything of it is deployed."""
    gate = make_review_gate(settings)
    try:
        return await gate.review(bundle, entrypoint, SystemClock().now())
    finally:
        await gate.close()


def examine(settings: Settings) -> Sequence[Equipment]:
    """What this machine has of what the service needs."""
    return [*engine_probe.examine(settings.data_dir), previews_probe.examine()]


async def take_stock(settings: Settings) -> Inventory | None:
    """Who uses what, also while a service runs; None where there is no database yet. Changes nothing.

    Raises ``StoreUnavailable``.
    """
    path = settings.data_dir.absolute() / "builderd.db"
    if settings.database_url is None and not path.exists():
        return None
    opened = SqlStore(settings.database)
    try:
        sizes = await LocalBundles(settings.data_dir / "bundles").sizes()
        users, used = await opened.read(lambda uow: (inventory.users(uow), inventory.used_bundles(uow, sizes)))
    finally:
        await opened.close()
    held = None
    with suppress(OSError):
        held = await asyncio.to_thread(holdings.look, settings.data_dir.absolute())
    return Inventory(users, sizes, used, held)


def build_base(settings: Settings, say: Callable[[str], None]) -> str:
    """Make the base root file system if it is not there; its name."""
    return ensure_base(progress=say).id
