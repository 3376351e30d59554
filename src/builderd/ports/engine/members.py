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

    async def move_disk(self, disk: DiskId) -> str:
        """Move a disk whose member is to be emptied to one that takes new disks, and return the name of its member.

        Another disk stays, and so does one that cannot be moved, which is not leaving then for some minutes. Meanwhile
        calls change no files of it. Raises ``NotFound``, ``InvalidState`` while a sandbox runs on it.
        """

    def write_off(self, disk: DiskId) -> None:
        """Report a disk on a member that is away as gone, and its sandbox as ended with its machine.

        This holds until the member returns, or the service ends. ``delete_disk`` is carried out when it returns, also
        after a restart of the service. Nothing happens to a disk on a member that answers.
        """
