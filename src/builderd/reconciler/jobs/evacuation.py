"""Evacuation of members of the cluster: their builders move to others, one after the other.

The disk of a running builder is copied while it serves. Then it is handed over to itself on the other member, as to a
new version: requests are held while the copy is completed, and where the app does not come up there, it serves on where
it was. A job is moved once it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from builderd.domain.builders import Builder, Candidate, Cause, Desired, Handover
from builderd.domain.errors import BuilderdError
from builderd.domain.events import SYSTEM, Event
from builderd.domain.ids import BuilderId, DiskId, new_id
from builderd.domain.members import MemberReport
from builderd.domain.versions import Version
from builderd.ports.store import UnitOfWork
from builderd.services import outcomes
from builderd.services.application import Application

log = logging.getLogger(__name__)

MOVING, MOVED = "member.moving", "member.moved"
#: After a builder could not be moved: the time until the next try, so that its app is not interrupted again and again.
RETRY = timedelta(minutes=5)
#: A take-over holds requests for 30 s at most; a slow app may take longer to come up.
TAKE_OVER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Move:
    """A move of a builder as it was read, from a member, to a disk that is being made."""

    builder: Builder
    version: Version
    member: str
    target: DiskId
    now: datetime

    @property
    def reason(self) -> str:
        return f"moved from the member {self.member} of the cluster, which is being evacuated"


class Evacuation:
    """Moves builders; remembers in memory when to try again those that could not be moved."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._retry_at: dict[BuilderId, datetime] = {}

    async def check(self) -> None:
        """Move all builders from members that are to be emptied."""
        if not self._app.engine.readiness().ready:
            return
        leaving = [one for one in await self._app.engine.members() if one.evacuating and one.away_since is None]
        if not leaving:
            self._retry_at.clear()
            return
        disks = await self._app.engine.disk_members()
        for member in leaving:
            for builder_id in await self._on(member, disks):
                await self._move(builder_id, member.name)

    async def _on(self, member: MemberReport, disks: Mapping[DiskId, str]) -> Sequence[BuilderId]:
        """Return builders whose disk lies on the member; of those that were never started, their disks tell."""

        def choose(uow: UnitOfWork) -> Sequence[BuilderId]:
            found = [*uow.builders.located(member.name), *uow.builders.unlocated().values()]
            return [one.id for one in uow.builders.get_all(found).values() if disks.get(one.disk) == member.name]

        return await self._app.store.read(choose)

    async def _move(self, builder_id: BuilderId, member: str) -> None:
        now = self._app.clock.now()
        move = await self._app.store.read(lambda uow: _plan(uow, builder_id, member, now))
        if move is None or now < self._retry_at.get(builder_id, now):
            return
        log.info("moving builder=%s member=%s", builder_id, member)
        try:
            await self._carry_out(move)
        except Exception as error:
            # The builders after it are moved all the same.
            log.warning(
                "builder not moved, retrying later builder=%s member=%s error=%s",
                *(builder_id, member, error),
                exc_info=not isinstance(error, BuilderdError),
            )
            self._retry_at[builder_id] = now + RETRY
            await self._discard(move)

    async def _carry_out(self, move: _Move) -> None:
        engine, builder = self._app.engine, move.builder
        location = await engine.stage_disk(builder.disk, move.target, move.version.layer_key or None)
        if builder.desired is Desired.RUNNING:
            await self._hand_over(move)
            return
        await engine.clone_disk(builder.disk, move.target, move.version.settings.resources.disk_bytes)
        # First: a service that is killed after the record does not come back to it.
        await engine.adopt_copy(move.target)
        if await self._app.store.write(lambda uow: _replace_disk(uow, move, location)):
            self._app.signals.desired_changed(builder.id)
        else:
            await self._discard(move)

    async def _hand_over(self, move: _Move) -> None:
        """Let the builder be handed over, and wait for the outcome: requests of one builder at a time are held."""
        begun = await self._app.store.write(lambda uow: _begin(uow, move))
        if begun is None:
            await self._discard(move)
            return
        self._app.signals.desired_changed(begun.id)
        self._app.signals.change(begun.id)
        try:
            async with asyncio.timeout(TAKE_OVER_SECONDS):
                after = await outcomes.wait_until_settled(self._app, begun.id, begun.generation, limited=False)
        except TimeoutError:
            return  # it goes on
        if after.disk != move.target:
            log.warning("builder did not come up elsewhere builder=%s member=%s", begun.id, move.member)
            self._retry_at[begun.id] = self._app.clock.now() + RETRY

    async def _discard(self, move: _Move) -> None:
        """Delete the copy unless the builder has it by now. One that cannot be deleted is left, and logged."""
        try:
            found = await self._app.store.read(lambda uow: uow.builders.get(move.builder.id))
            if found is None or move.target not in found.disks:
                await self._app.engine.delete_disk(move.target)
        except Exception as error:
            log.warning("copy of a disk not deleted builder=%s disk=%s error=%s", move.builder.id, move.target, error)


def _plan(uow: UnitOfWork, builder_id: BuilderId, member: str, now: datetime) -> _Move | None:
    """Return the move of a builder that is at rest; None of one that changes now, or is a job that runs."""
    builder = uow.builders.get(builder_id)
    if builder is None or not _can_move(builder):
        return None
    version = uow.versions.get(builder.id, builder.version)
    assert version is not None, "a builder's versions are always stored"
    return _Move(builder, version, member, DiskId(new_id()), now)


def _can_move(builder: Builder) -> bool:
    if not builder.settled or builder.desired is Desired.DELETED:
        return False
    if builder.candidate is not None or builder.handover is not None:
        return False
    return builder.desired is Desired.STOPPED or builder.job_type.stays_up


def _unchanged(uow: UnitOfWork, move: _Move) -> Builder | None:
    """Return the builder, locked, if nothing else began with it meanwhile."""
    builder, before = uow.builders.get(move.builder.id, lock=True), move.builder
    if builder is None or not _can_move(builder):
        return None
    same = (builder.generation, builder.desired, builder.disk) == (before.generation, before.desired, before.disk)
    return builder if same else None


def _begin(uow: UnitOfWork, move: _Move) -> Builder | None:
    """Begin the hand-over of a running builder to itself on the copy; None where it changed."""
    builder = _unchanged(uow, move)
    if builder is None:
        return None
    moved = replace(
        builder,
        generation=builder.generation + 1,
        handover=Handover.FORWARD,
        candidate=Candidate(builder.version, move.target),
        cause=Cause(SYSTEM, move.reason),
        asleep_since=None,
        updated_at=move.now,
    )
    uow.builders.save(moved)
    uow.builders.make_due(builder.id, move.now)
    _tell(uow, builder, MOVING, move)
    return moved


def _replace_disk(uow: UnitOfWork, move: _Move, location: str) -> bool:
    """Give a builder that does not run its copy; False where it changed."""
    builder = _unchanged(uow, move)
    if builder is None:
        return False
    spare = (*builder.spare_disks, builder.disk)
    uow.builders.save(replace(builder, disk=move.target, spare_disks=spare, location=location, updated_at=move.now))
    uow.builders.make_due(builder.id, move.now)
    _tell(uow, builder, MOVED, move)
    return True


def _tell(uow: UnitOfWork, builder: Builder, kind: str, move: _Move) -> None:
    details = {"member": move.member}
    uow.events.add(Event(builder.tenant_id, builder.id, move.now, kind, SYSTEM, move.reason, details))
