"""Lost members of the cluster, whose builders get a backup on another member, and the evacuation of members.

A builder whose disk is written off is as one that lost its disk: its newest backup is restored. One without a backup
waits for the member, and never gets an empty disk. An evacuated member's builders move one after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial

from builderd.application import Application
from builderd.backups import restores
from builderd.builders import outcomes
from builderd.builders.model import Builder, Cause, Desired, Handover
from builderd.core.errors import BuilderdError
from builderd.core.ids import BuilderId, DiskId
from builderd.core.members import MemberReport
from builderd.database.unit_of_work import UnitOfWork
from builderd.events.model import SYSTEM, Event
from builderd.reconciler.record import Transition
from builderd.reconciler.steps.disk import disk_moved

log = logging.getLogger(__name__)

#: Chooses among the builders of a member: nothing is written for the others.
Choice = Callable[[UnitOfWork, Builder], bool]

LOST, RETURNED = "member.lost", "member.returned"


class LostMembers:
    """Remembers the members that it reported; after a restart of the service those that are away are reported again."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._told: set[str] = set()
        self._begun = False

    async def check(self) -> None:
        """Tell builders of members that were lost or have returned; give up disks of those away for too long."""
        if not self._app.engine.readiness().ready:
            return
        members = await self._app.engine.members()
        if not self._begun:
            # Those whose member returned meanwhile have the reason that an earlier process of the service wrote.
            for member in members:
                if member.away_since is None:
                    await self._tell(member, RETURNED, only_waiting=True)
            self._begun = True
        for member in members:
            if member.away_since is None:
                if member.name in self._told:
                    await self._tell(member, RETURNED)
                    self._told.discard(member.name)
                continue
            if member.name not in self._told:
                log.error("member lost member=%s", member.name)
                await self._tell(member, LOST)
                self._told.add(member.name)
            if member.given_up:
                await self._recover(member)

    async def _tell(self, member: MemberReport, kind: str, *, only_waiting: bool = False) -> None:
        """Record the event for each builder of the member, or each that waits for it, and wake its callers."""
        reason = _lost_reason(member)
        for builder in await self._chosen(member, lambda _, one: not only_waiting or one.status_reason == reason):
            tell = partial(_tell, builder_id=builder.id, member=member, kind=kind, now=self._app.clock.now())
            if await self._app.store.write(tell):
                self._app.signals.change(builder.id)

    async def _chosen(self, member: MemberReport, choice: Choice) -> Sequence[Builder]:
        def choose(uow: UnitOfWork) -> Sequence[Builder]:
            found = uow.builders.get_all(uow.builders.located(member.name)).values()
            return [builder for builder in found if choice(uow, builder)]

        return await self._app.store.read(choose)

    async def _recover(self, member: MemberReport) -> None:
        """Give up the disks that backups replace, and have that begun.

        The engine keeps in memory what is written off: that is repeated until the recovery is over.
        """
        now = self._app.clock.now()
        for builder in await self._chosen(member, partial(_is_recovering, now=now)):
            await self._write_off(member, builder.disk)
        for builder in await self._chosen(member, partial(_is_recoverable, now=now)):
            begin = partial(_make_due, builder_id=builder.id, member=member, now=now)
            if disk := await self._app.store.write(begin):
                await self._write_off(member, disk)
                self._app.signals.change(builder.id)

    async def _write_off(self, member: MemberReport, disk: DiskId) -> None:
        """Write the disk off unless its member has returned meanwhile."""
        if any(one.name == member.name and one.given_up for one in await self._app.engine.members()):
            self._app.engine.write_off(disk)


def _is_recovering(uow: UnitOfWork, builder: Builder, now: datetime) -> bool:
    return restores.loss(uow, builder.id, now).recovering


def _is_recoverable(uow: UnitOfWork, builder: Builder, now: datetime) -> bool:
    """Return True if its backup is to take the place of its disk, and nothing has begun that yet."""
    if builder.desired is not Desired.RUNNING:
        return False
    lost = restores.loss(uow, builder.id, now)
    return lost.backup is not None and not lost.recovering


def _make_due(uow: UnitOfWork, builder_id: BuilderId, member: MemberReport, now: datetime) -> DiskId | None:
    """Have the recovery begun; return the disk to write off, None where that changed meanwhile."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None or builder.location != member.name or not _is_recoverable(uow, builder, now):
        return None
    uow.builders.make_due(builder.id, now)
    return builder.disk


def _lost_reason(member: MemberReport) -> str:
    return f"the member {member.name} of the cluster, which has its disk, does not answer: it waits for its return"


def _tell(uow: UnitOfWork, builder_id: BuilderId, member: MemberReport, kind: str, now: datetime) -> bool:
    """Record that the builder's member was lost or answers again; return False if it was started elsewhere."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None or builder.location != member.name:
        return False
    reason = _lost_reason(member) if kind == LOST else f"the member {member.name} of the cluster answers again"
    uow.events.add(Event(builder.tenant_id, builder.id, now, kind, SYSTEM, reason, {"member": member.name}))
    if builder.desired is Desired.RUNNING:
        uow.builders.save(replace(builder, status_reason=reason, updated_at=now))
    if kind == RETURNED:
        uow.builders.make_due(builder.id, now)
    return True


#: Seconds after which the next builder is begun with, though one still moves: its disk may be large.
WAIT_SECONDS = 600.0


class Evacuation:
    def __init__(self, application: Application) -> None:
        self._app = application

    async def check(self) -> None:
        """Move all builders from members that are to be emptied, if another one takes them."""
        if not self._app.engine.readiness().ready:
            return
        answering = [one for one in await self._app.engine.members() if one.away_since is None]
        leaving = [one for one in answering if one.evacuating]
        if not leaving or len(leaving) == len(answering):
            return
        disks = await self._app.engine.disk_members()
        for member in leaving:
            for builder in await self._on(member, disks):
                try:
                    await self._move(builder, member)
                except Exception as error:
                    # The builders after it are moved all the same.
                    log.warning(
                        "builder not moved, retrying builder=%s member=%s error=%s",
                        *(builder.id, member.name, error),
                        exc_info=not isinstance(error, BuilderdError),
                    )

    async def _on(self, member: MemberReport, disks: Mapping[DiskId, str]) -> Sequence[Builder]:
        """Return builders at rest whose disk lies on the member; of those that were never started, their disks tell."""

        def choose(uow: UnitOfWork) -> Sequence[Builder]:
            found = [*uow.builders.located(member.name), *uow.builders.unlocated().values()]
            here = (one for one in uow.builders.get_all(found).values() if disks.get(one.disk) == member.name)
            return [one for one in here if _can_move(one)]

        return await self._app.store.read(choose)

    async def _move(self, builder: Builder, member: MemberReport) -> None:
        disk = await self._app.engine.disks.disk(builder.disk)
        if disk is None or not disk.is_leaving:  # it could not be moved a moment ago
            return
        now = self._app.clock.now()
        log.info("moving builder=%s member=%s", builder.id, member.name)
        if builder.desired is Desired.STOPPED:
            moved_to = await self._app.engine.move_disk(builder.disk)
            await self._app.store.write(lambda uow: self._record(uow, builder, moved_to, now))
            return
        begun = await self._app.store.write(lambda uow: _start_anew(uow, builder.id, member, now))
        if begun is not None:
            self._app.signals.desired_changed(begun.id)
            self._app.signals.change(begun.id)
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await outcomes.wait_until_settled(self._app, begun.id, begun.generation, limited=False)
            except TimeoutError:
                return  # it goes on

    def _record(self, uow: UnitOfWork, before: Builder, member: str, now: datetime) -> None:
        builder = uow.builders.get(before.id, lock=True)
        if builder is not None and builder.disk == before.disk:
            disk_moved(Transition(uow, builder, self._app.prices, now), member)


def _can_move(builder: Builder) -> bool:
    """Return True for a builder at rest, but for a job that runs."""
    if not builder.settled or builder.candidate is not None or builder.handover is not None:
        return False
    return builder.desired is Desired.STOPPED or (builder.desired is Desired.RUNNING and builder.job_type.stays_up)


def _start_anew(uow: UnitOfWork, builder_id: BuilderId, member: MemberReport, now: datetime) -> Builder | None:
    """Have a running builder started anew, with its requests held; None where it changed."""
    builder = uow.builders.get(builder_id, lock=True)
    if builder is None or not _can_move(builder) or builder.desired is not Desired.RUNNING:
        return None
    reason = f"started anew: its member {member.name} of the cluster is being evacuated"
    again = replace(
        builder,
        generation=builder.generation + 1,
        handover=Handover.AGAIN,
        cause=Cause(SYSTEM, reason),
        asleep_since=None,
        updated_at=now,
    )
    uow.builders.save(again)
    uow.builders.make_due(builder.id, now)
    return again
