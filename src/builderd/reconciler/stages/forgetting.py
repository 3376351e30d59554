"""The last step of a deletion: a deleted builder's disks and logs go, and then its code that nothing else uses."""

from __future__ import annotations

from functools import partial

from builderd.domain.database_lease import MemberAway
from builderd.domain.ids import BuilderId, DiskId
from builderd.reconciler.core import version_transitions
from builderd.reconciler.core.observe import WorkItem
from builderd.reconciler.core.transitions import Result, Transition
from builderd.services import backups, bundles
from builderd.services.application import Application


class Forgetting:
    """Deletes what a deleted builder has; its disk is left for a last backup if it has backups."""

    def __init__(self, application: Application) -> None:
        self._app = application

    async def forget(self, item: WorkItem) -> Result:
        """Delete disks and logs; the record marks the builder as deleted. Raises what the engine raises."""
        engine, forgotten = self._app.engine, item.builder
        is_kept = forgotten.backup_interval_hours > 0 and await self._can_back_up(forgotten.disk)
        for disk in forgotten.disks[1:] if is_kept else forgotten.disks:
            await engine.disks.delete_disk(disk)
        await engine.logs.delete_logs(forgotten.id)

        def record(transition: Transition) -> None:
            if is_kept:
                backups.keep_last(transition.uow, self._app, transition.builder, transition.now)
            version_transitions.deleted(transition)

        return Result(record, partial(self._drop_bundles, forgotten.id))

    async def _can_back_up(self, disk: DiskId) -> bool:
        """Return True unless the disk is gone, or lies on a member that is away: earlier backups are kept then."""
        try:
            return await self._app.engine.disks.disk(disk) is not None
        except MemberAway:
            return False

    async def _drop_bundles(self, builder_id: BuilderId) -> None:
        versions = await self._app.store.read(lambda uow: uow.versions.list(builder_id))
        for bundle_hash in {version.bundle_hash for version in versions}:
            await bundles.drop_unused(self._app, bundle_hash)
