"""Disk: make a builder's disk, move or restore it, note its loss, fill it, and drop those that nothing needs any more.

Recorded: that it is made, and billed from then on; its member; its loss, before another one is made.
Left when killed: a disk of the recorded id, which the next try finds; files on it, which the next try writes again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from builderd.application import Application
from builderd.backups import restores
from builderd.builders import candidates
from builderd.code import service as bundles
from builderd.code.model import Bundle
from builderd.core.ids import DiskId, new_id
from builderd.events.model import SYSTEM
from builderd.money import service as spending
from builderd.money.model import Billing
from builderd.reconciler.observe import WorkItem
from builderd.reconciler.record import Result, Transition
from builderd.sandboxes.model import Sandbox
from builderd.versions import service as deployments
from builderd.versions.model import NO_BUILD


async def create_disk(app: Application, item: WorkItem) -> Result:
    """A candidate takes over the data on a copy, so that it can be given up without a trace."""
    engine, builder, size = app.engine, item.builder, item.version.settings.resources.disk_bytes
    copies = item.disk != builder.disk and await engine.disks.disk(item.disk) is None
    if copies and await engine.disks.disk(builder.disk) is not None:
        await engine.disks.clone_disk(builder.disk, item.disk, size)
    else:
        await engine.disks.create_disk(item.disk, size)
    return Result(lambda transition: _disk_made(transition, item), quiet=True, durable=False)


def _disk_made(transition: Transition, item: WorkItem) -> None:
    """Record the builder's disk, which is billed from now on."""
    uow, builder = transition.uow, transition.builder
    if not builder.disk_is_made:
        uow.builders.save(replace(builder, disk_is_made=True))
    if uow.ledger.current(builder.id) is None:
        resources = item.version.settings.resources
        spending.bill(uow, transition.prices, builder, resources, Billing.STOPPED, transition.now)


async def move_disk(app: Application, item: WorkItem) -> Result:
    member = await app.engine.move_disk(item.disk)
    return Result(lambda transition: disk_moved(transition, member), quiet=True)


def disk_moved(transition: Transition, member: str) -> None:
    """Record that the builder's disk lies on this member of the cluster, if it was another one."""
    uow, builder = transition.uow, transition.builder
    if builder.location and builder.location != member:
        reason = f"moved from the member {builder.location} of the cluster, which is being evacuated"
        candidates.record(uow, builder, "member.moved", SYSTEM, reason, transition.now, member=builder.location)
    uow.builders.save(replace(builder, location=member))


async def record_loss(app: Application, item: WorkItem) -> Result:
    """The disk of a candidate is a copy: its release runs again on the next one, and nothing else is lost."""
    is_own = await app.engine.disks.disk(item.builder.disk) is None
    return Result(lambda transition: _disk_lost(transition, item, is_own=is_own), quiet=True)


def _disk_lost(transition: Transition, item: WorkItem, *, is_own: bool) -> None:
    """Record that the disk to run on is gone, before another one is made: a crash in between loses nothing.

    ``is_own``: the builder's own is gone, not only a candidate's copy of it.
    """
    uow, builder = transition.uow, transition.builder
    if is_own and builder.disk_is_made and deployments.has_data(uow, builder):
        reason = "its disk is gone, and there is no backup of it: it begins anew with the files of its version"
        candidates.record(uow, builder, "disk.lost", SYSTEM, reason, transition.now, disk=builder.disk)
    version = uow.versions.require(item.version.builder_id, item.version.number)
    if version.released:
        # The release prepared the disk that is gone.
        uow.versions.save(replace(version, released=False))
    if is_own:
        uow.builders.save(replace(builder, disk_is_made=False))


def recover_disk(app: Application, item: WorkItem) -> Result:
    disk = item.builder.disk  # the backups' schedule restores it; this only asks for that
    return Result(lambda made: restores.recover(made.uow, app, made.builder, disk, made.now))


async def put_bundle(app: Application, item: WorkItem) -> Result:
    """Bring the version's files onto the disk of the version to run; its own bundle's hash is on it afterwards."""
    await put_files(app, item, item.disk)
    return Result()


async def put_files(application: Application, item: WorkItem, disk: DiskId) -> None:
    """Bring the version's files onto a disk that may have another version's, and what the app made of them."""
    bundle = await bundles.fetch(application, item.version)
    report = await application.engine.disks.disk(disk)
    # What is on the disk: what it says itself, else what its builder's current version has.
    known = report.bundle_hash if report else None
    if known is None and item.current is not None:
        known = item.current.bundle_hash
    before: Bundle | None = None
    if known is not None:
        with suppress(KeyError):
            before = await application.bundles.get(known)
    await application.engine.disks.put_bundle(disk, bundle, before, item.version.build_key or NO_BUILD)


async def drop_disks(app: Application, item: WorkItem) -> Result:
    dropped = item.builder.spare_disks
    for disk in dropped:
        await app.engine.disks.delete_disk(disk)

    def record(transition: Transition) -> None:
        left = tuple(disk for disk in transition.builder.spare_disks if disk not in dropped)
        transition.uow.builders.save(replace(transition.builder, spare_disks=left))

    return Result(record, quiet=True)


def discard_first_disk(transition: Transition, sandbox: Sandbox) -> None:
    """Give a builder that never was up another disk after a release that did not succeed on its first one.

    Other releases run on a copy, which goes with the candidate, or on the disk of a builder that was up, which stays.
    """
    uow, now = transition.uow, transition.now
    builder = uow.builders.get(transition.builder.id)
    if builder is None or sandbox.disk != builder.disk or deployments.has_data(uow, builder):
        return
    uow.ledger.close(builder.id, now)
    spare = (*builder.spare_disks, builder.disk)
    uow.builders.save(replace(builder, disk=DiskId(new_id()), disk_is_made=False, spare_disks=spare))
