"""Disks: the apps' files, each disk with a hard limit of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from builderd.domain.bundles import Bundle
from builderd.domain.ids import DiskId
from builderd.ports.disk_files import DiskFiles


@dataclass(frozen=True, slots=True)
class DiskReport:
    """State of a disk. ``bundle_hash``: bundle last written completely, None before the first.

    ``build_key``: the layer whose files were written with it, empty without one. ``is_leaving``: its member of the
    cluster is to be emptied, and ``move_disk`` comes before the next start.
    """

    id: DiskId
    bundle_hash: str | None
    size_bytes: int
    build_key: str = ""
    is_leaving: bool = False


class Disks(DiskFiles, Protocol):
    def hold_disk(self, disk: DiskId, size_bytes: int) -> None:
        """Reserve the space of a disk that is to be created within the hour, without waiting. Raises ``NoCapacity``."""

    async def create_disk(self, disk: DiskId, size_bytes: int) -> None:
        """Create an empty disk with a hard limit; an existing one gets the limit. Idempotent. Raises ``NoCapacity``."""

    async def disk(self, disk: DiskId) -> DiskReport | None:
        """Return the state of the disk, or None when there is none."""

    async def put_bundle(
        self, disk: DiskId, bundle: Bundle, replaced: Bundle | None = None, build_key: str = ""
    ) -> None:
        """Write the files into the disk's ``/app`` and record the bundle's hash last. Idempotent.

        Where another bundle is ``replaced``, only what differs between the two is written or removed
        (``domain.bundles.changes``): the app's changes to other files stay, and so do files that it made.
        The files of the layer ``build_key``, which a build of this bundle made, are written over them; those of the
        build that was there before are removed. Raises ``NotFound`` without that layer.

        Never follows a link out of the disk. Must not be called while a sandbox runs on it.
        """

    async def mark_bundle(self, disk: DiskId, bundle_hash: str) -> None:
        """Record that the bundle is on the disk already, with the app's later changes, as a backup has them."""

    async def clone_disk(self, source: DiskId, target: DiskId, size_bytes: int, *, for_backup: bool = False) -> None:
        """Make an independent copy with a limit of its own, instantly. Idempotent.

        A sandbox that runs on the source is frozen meanwhile, for some milliseconds, so that the copy is consistent.
        When the service dies in between, the next one thaws it. ``for_backup``: the user's home lies among the files,
        where tools see it.
        """

    async def delete_disk(self, disk: DiskId) -> None:
        """Delete the disk. Idempotent."""
