"""Preflight checks of this machine, the inventory of its storage, its clock, and the base root file system."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from builderd.bootstrap.bundles import bundle_sizes, bundle_space
from builderd.bootstrap.data_directory import lock
from builderd.bootstrap.database import database_location, existing_store, unmigrated_store
from builderd.bootstrap.domains import make_domain_rules
from builderd.bootstrap.engines import engine_provider, make_engine
from builderd.core.errors import EngineUnavailable
from builderd.core.members import DatabaseLease, SeenService, describe_owner, describe_standby
from builderd.core.resources import GB, Allocation, room_of, size_text
from builderd.database.unit_of_work import Store, UnitOfWork
from builderd.domains.model import describe_public, public_name
from builderd.engine.inventory import Inventory, PreflightCheck
from builderd.linux.clock import SystemClock
from builderd.metrics import service as metrics
from builderd.previews.haproxy import process as previews_preflight
from builderd.qa.testers import local as testers_preflight
from builderd.settings import Settings


def run_preflight_checks(settings: Settings) -> Sequence[PreflightCheck]:
    """Check programs, kernel features and space that the service needs on this machine."""
    engine = engine_provider(settings).run_checks(settings.data_dir, int(settings.store.floor * GB))
    qa = testers_preflight.run_checks(settings.qa.chromium)
    return [*engine, previews_preflight.run_check(), *qa]


async def describe_database(settings: Settings) -> Sequence[str]:
    """Return lines on the database's owner and schema differences; none when there is no database yet.

    Changes nothing. Raises ``StoreUnavailable``, and ``InvalidState`` when the service uses another database.
    """
    if not _database_exists(settings):
        return []
    async with unmigrated_store(settings) as opened:
        lease = await opened.read(lambda uow: uow.database_lease.get())
        await opened.find_damage()
        differences = await opened.schema_differences()
        services = [] if differences else await opened.read(lambda uow: uow.services.list())
        public = [] if differences else await _describe_public(settings, opened)
        damaged = [] if differences else await opened.read(_describe_backups)
    owner = f"belongs to {describe_owner(lease)}" if lease else "belongs to no service yet"
    return [
        f"database {database_location(settings)}: {owner}",
        *_describe_standbys(services, lease),
        *(f"database: {difference}" for difference in differences),
        *public,
        *([] if differences else await describe_clock(settings)),
        *damaged,
    ]


def _describe_standbys(services: Sequence[SeenService], lease: DatabaseLease | None) -> Sequence[str]:
    if lease is None:
        return []
    owner = next((one.service for one in services if one.service.id == lease.instance.member), None)
    return [describe_standby(one, lease, owner) for one in services if one.service.id != lease.instance.member]


async def _describe_public(settings: Settings, opened: Store) -> Sequence[str]:
    """Return a line on the certificate of ``public_url``, none where the service does not get it."""
    rules = make_domain_rules(settings)
    if (host := rules.public_host) is None or not rules.orders_public:
        return []
    stored = await opened.read(lambda uow: uow.wildcard_certificates.get(public_name(host)))
    _, text = describe_public(host, stored, datetime.now(UTC))
    return [f"public_url: {text}"]


def _describe_backups(uow: UnitOfWork) -> Sequence[str]:
    """Return lines on damaged repositories of backups, and on backups that lack data or failed their drill."""
    lines = [f"backups of tenant {key.tenant_id}: {key.fault}" for key in uow.backup_keys.all() if key.fault]
    if unproven := uow.backups.count_damaged():
        lines.append(f"backups: {unproven} lack data or failed their drill (fault in GET /api/v1/backups)")
    return lines


def _database_exists(settings: Settings) -> bool:
    return settings.database_url is not None or (settings.data_dir.absolute() / "builderd.db").exists()


async def load_inventory(settings: Settings) -> Inventory | None:
    """Return the storage used by each tenant and builder, None when there is no database yet. Changes nothing.

    Works also while the service runs. Raises ``StoreUnavailable``, and ``InvalidState`` when the service uses another
    database.
    """
    if not _database_exists(settings):
        return None
    async with unmigrated_store(settings) as opened:
        sizes = await bundle_sizes(settings, opened)
        users, used = await opened.read(lambda uow: (metrics.users(uow), metrics.used_bundles(uow, sizes)))
    stored = None
    with suppress(OSError, EngineUnavailable):
        stored = await asyncio.to_thread(engine_provider(settings).read_inventory, settings.data_dir.absolute())
    return Inventory(users, sizes, used, stored)


async def describe_space(settings: Settings) -> Sequence[str]:
    """Return lines on the room for more apps, on what is in use, and on the space for code. As ``load_inventory``."""
    lines, allocated = [], Allocation()
    if _database_exists(settings):
        async with unmigrated_store(settings) as opened:
            space = await bundle_space(settings, opened)
            allocated = await opened.read(lambda uow: uow.builders.allocated())
        line = f"stored code: {size_text(space.used)}, and {size_text(space.free)} are free for more"
        lines = [f"{line}: nearly full. {space.remedy}" if space.is_nearly_full else line]
    used = await make_engine(settings, SystemClock()).use()
    of = ((used.cpu, used.capacity.cpu), (used.memory, used.capacity.memory), (used.disk, used.disk_total))
    texts = [f"{part:.1f} of {whole:.1f}" for part, whole in of]
    in_use = f"in use: a load of {texts[0]} vCPU, {texts[1]} GB of memory, {texts[2]} GB of the store"
    return [in_use, room_of(settings.to_tenant_limits().of_machine(used.capacity), used, allocated)[1], *lines]


def build_base(settings: Settings, say: Callable[[str], None]) -> str:
    """Build the base root file system if it is missing. Return its name."""
    return engine_provider(settings).build_base(say, settings.package_index)


_MEMORY = "clock.json"


async def describe_clock(settings: Settings) -> Sequence[str]:
    """Return lines on a clock that was set and on rows after its time; none for neither. Reads all rows."""
    memory = settings.data_dir / _MEMORY
    if not memory.is_file():
        return []
    async with unmigrated_store(settings) as opened:
        fault = SystemClock(memory, begins=False).fault()
        later = await opened.read(lambda uow: uow.stored_times.later_than(datetime.now(UTC)))
    lines = [f"clock: {fault}"] if fault else []
    if later:
        lines.append(
            f"clock: {sum(later.values())} times lie in the future ({', '.join(sorted(later))}). If the machine's "
            "clock is right, stop the service and run `builderd clock repair`."
        )
    return lines


async def repair_clock(settings: Settings, confirm: Callable[[datetime, int], None]) -> Mapping[str, int]:
    """Mend times after the machine's; return how many were, by column. ``confirm`` raises to change nothing.

    Raises ``EngineUnavailable`` while the service runs, and ``InvalidState`` where there is no database.
    """
    async with existing_store(settings) as opened:
        with lock(settings.data_dir):
            now = datetime.now(UTC)
            later = await opened.read(lambda uow: uow.stored_times.later_than(now))
            confirm(now, sum(later.values()))
            changed = await opened.write(lambda uow: uow.stored_times.repair(now))
            SystemClock(settings.data_dir / _MEMORY).forget_latest()
            return changed
