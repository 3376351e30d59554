"""Addresses of the cluster's members: in the proxy's memory, and in the file that it reads when it starts."""

from __future__ import annotations

from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.workers import Workers
from builderd.linux import atomic_files


class MemberTable:
    """``sync`` raises ``ProxyGone`` and ``CommandRefused``."""

    def __init__(self, files: ProxyFiles, workers: Workers) -> None:
        self._file = files.members
        self._workers = workers
        self.addresses: frozenset[str] = frozenset()

    def write(self) -> None:
        """Write the file: the proxy starts only if it exists."""
        lines = "".join(f"{address} 1\n" for address in sorted(self.addresses))
        atomic_files.replace(self._file, lines.encode(), mode=0o644)

    async def sync(self) -> None:
        """Make the proxy's memory equal to the file."""
        await self._workers.sync_members(dict.fromkeys(self.addresses, "1"))
