"""Disks of builders on this machine: changes wait for the store, and for the sandbox that runs on a disk."""

from __future__ import annotations

from functools import partial

from builderd.adapters.engines.oci.engine.machine import Machine
from builderd.adapters.engines.oci.storage.too_large import full_store_named
from builderd.domain.bundles import Bundle
from builderd.domain.ids import DiskId
from builderd.linux.threads import run_to_completion
from builderd.ports.engine import DiskReport


class Disks:
    """Implements ``ports.engine.Disks``."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._disks = machine.disks

    def hold_disk(self, disk: DiskId, size_bytes: int) -> None:
        self._disks.hold(disk, size_bytes)

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        with full_store_named(self._machine.store):
            await run_to_completion(self._disks.create, disk, size_bytes)

    async def disk(self, disk: DiskId) -> DiskReport | None:
        return self._disks.report(disk)

    async def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build_key: str = ""
    ) -> None:
        self._machine.runs.refuse_while_used(disk)
        build = self._machine.layers.finished_build(build_key) if build_key else None
        await run_to_completion(self._disks.put_bundle, disk, bundle, replaced, build)

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        with full_store_named(self._machine.store):
            await run_to_completion(self._disks.mark_bundle, disk, bundle_hash)

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        user = self._machine.runs.user_of(source)
        clone = partial(self._disks.clone, source, target, size_bytes, for_backup=for_backup)
        with full_store_named(self._machine.store):
            if user is None:
                await run_to_completion(clone)
            else:  # written out before the freeze, so that the freeze is shorter
                await run_to_completion(self._disks.write_out, source)
                await self._machine.runs.freezing.while_frozen(user, clone)

    async def delete_disk(self, disk: DiskId) -> None:
        self._machine.runs.refuse_while_used(disk)
        await run_to_completion(self._disks.delete, disk)
