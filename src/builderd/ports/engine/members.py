"""Members of the cluster that the engine works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from builderd.domain.ids import DiskId
from builderd.domain.members import MemberReport


class Members(Protocol):
    async def members(self) -> Sequence[MemberReport]:
        """Return the members as last seen; none where the engine works on this machine alone."""

    async def disk_members(self) -> Mapping[DiskId, str]:
        """Return the member of each disk, also of those on members that are away; none without a cluster."""

    async def stage_disk(self, disk: DiskId, target: DiskId, layer_key: str | None) -> str:
        """Copy a disk, which may be in use, to a member that takes new disks, and return its name.

        ``clone_disk(disk, target)`` completes the copy.

        Until then ``target`` is no disk. From the completion on files of ``disk`` are not changed by calls, until
        one of the two is deleted. The layer is made ready there, too. Raises ``NotFound``, ``NoCapacity``.
        """

    async def adopt_copy(self, disk: DiskId) -> None:
        """Note that a copy is a builder's own disk from now on: never a left-over, whatever records say. Idempotent.

        This comes before an app runs on it, and before a record makes it the builder's. Raises ``NotFound``.
        """

    def write_off(self, disk: DiskId) -> None:
        """Report a disk on a member that is away as gone, and its sandbox as ended with its machine.

        This holds until the member returns, or the service ends. ``delete_disk`` is carried out when it returns, also
        after a restart of the service. Nothing happens to a disk on a member that answers.
        """
