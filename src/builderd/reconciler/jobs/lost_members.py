"""Lost members of the cluster: their builders say so, and get a backup on another member where the operator wants that.

A builder whose disk is written off is as one that lost its disk: ``reconciler/backups/recovering`` brings its newest
backup back. One without a backup waits for the member, and never gets an empty disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial

from builderd.domain.builders import Builder, Desired
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BuilderId
from builderd.domain.members import MemberReport
from builderd.ports.store import UnitOfWork
from builderd.services import backups
from builderd.services.application import Application

log = logging.getLogger(__name__)

#: Changes a builder because of its member; returns True when those who wait for the builder are to look again.
Action = Callable[[UnitOfWork, Builder, MemberReport, datetime], bool]

LOST, RETURNED = "member.lost", "member.returned"


class LostMembers:
    """Remembers the members that it reported; after a restart of the service those that are away are reported again."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._told: set[str] = set()

    async def check(self) -> None:
        """Tell builders of members that were lost or have returned; give up disks of those away for too long."""
        if not self._app.engine.readiness().ready:
            return
        for member in await self._app.engine.members():
            if member.away_since is None:
                if member.name in self._told:
                    await self._each(member, _returned)
                    self._told.discard(member.name)
                continue
            if member.name not in self._told:
                log.error("member lost member=%s", member.name)
                await self._each(member, _lost)
                self._told.add(member.name)
            if member.given_up:
                await self._each(member, self._recover)

    async def _each(self, member: MemberReport, action: Action) -> None:
        """Carry out the action for each builder of the member, and wake those for which it returned True."""
        found = await self._app.store.read(lambda uow: uow.builders.located(member.name))
        for builder_id in found:
            act = partial(_on_builder, builder_id=builder_id, member=member, action=action, now=self._app.clock.now())
            if await self._app.store.write(act):
                self._app.signals.change(builder_id)

    def _recover(self, uow: UnitOfWork, builder: Builder, member: MemberReport, now: datetime) -> bool:
        lost = backups.loss(uow, builder.id, now)
        if builder.desired is not Desired.RUNNING or lost.backup is None or lost.recovering:
            return False
        self._app.engine.write_off(builder.disk)
        uow.builders.make_due(builder.id, now)
        return True


def _on_builder(
    uow: UnitOfWork,
    builder_id: BuilderId,
    member: MemberReport,
    action: Action,
    now: datetime,
) -> bool:
    builder = uow.builders.get(builder_id, lock=True)
    # It may have been started elsewhere meanwhile.
    return builder is not None and builder.location == member.name and action(uow, builder, member, now)


def _lost(uow: UnitOfWork, builder: Builder, member: MemberReport, now: datetime) -> bool:
    reason = f"the member {member.name} of the cluster, which has its disk, does not answer: it waits for its return"
    _tell(uow, builder, LOST, reason, member, now)
    return True


def _returned(uow: UnitOfWork, builder: Builder, member: MemberReport, now: datetime) -> bool:
    _tell(uow, builder, RETURNED, f"the member {member.name} of the cluster answers again", member, now)
    uow.builders.make_due(builder.id, now)
    return True


def _tell(uow: UnitOfWork, builder: Builder, kind: str, reason: str, member: MemberReport, now: datetime) -> None:
    uow.events.add(Event(builder.tenant_id, builder.id, now, kind, SYSTEM, reason, {"member": member.name}))
    if builder.desired is Desired.RUNNING:
        uow.builders.save(replace(builder, status_reason=reason, updated_at=now))
