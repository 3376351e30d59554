"""Evacuation of members of the cluster: their builders move to others, one after the other.

A running builder starts anew, and the reconciler moves its disk before that; a stopped one's is moved here. A job is
moved once it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from builderd.domain.builders import Builder, Cause, Desired, Handover
from builderd.domain.database_lease import MemberReport
from builderd.domain.errors import BuilderdError
from builderd.domain.events import SYSTEM
from builderd.domain.ids import BuilderId, DiskId
from builderd.reconciler.core.transitions import Transition, disk_moved
from builderd.services import outcomes
from builderd.services.application import Application
from builderd.store import UnitOfWork

log = logging.getLogger(__name__)

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
