"""Links to private previews: in the proxy's memory, and in the file that it reads when it starts.

``links.map`` has a line ``sha256 host|port|end`` for each link (``shares``). It is changed before the proxy's memory: a
proxy that starts meanwhile reads it. A new link costs one line, however many there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.adapters.previews.haproxy.workers import Workers
from builderd.domain.previews import PreviewLink
from builderd.linux import atomic_files


class LinkTable:
    """Methods raise ``ProxyGone`` and ``CommandRefused``; ``sync`` repairs what one of them left."""

    def __init__(self, files: ProxyFiles, workers: Workers) -> None:
        self._file = files.links
        self._workers = workers
        self._entries: dict[str, str] = {}

    def load(self) -> None:
        """Read the file, and make it where it is missing: the proxy starts only if it exists."""
        lines = self._file.read_text(errors="replace").splitlines() if self._file.exists() else ()
        # Without a line that a power cut left half written.
        self._entries = {digest: entry for digest, _, entry in (line.partition(" ") for line in lines) if entry}
        _write(self._file, self._entries)

    async def sync(self) -> None:
        """Make the proxy's memory equal to the file."""
        await self._workers.sync_links(self._entries)

    async def put(self, link: PreviewLink) -> None:
        if link.token_hash not in self._entries:
            atomic_files.append(self._file, f"{link.token_hash} {link.entry}\n")
            self._entries[link.token_hash] = link.entry
        await self._workers.put_link(link.token_hash, link.entry)

    async def remove(self, token_hash: str) -> None:
        if self._entries.pop(token_hash, None) is not None:
            await asyncio.to_thread(_write, self._file, dict(self._entries))
        await self._workers.remove_link(token_hash)

    async def replace(self, links: Collection[PreviewLink]) -> None:
        """Keep exactly these; only what differs is sent to the proxy."""
        wanted, known = {link.token_hash: link.entry for link in links}, self._entries
        if wanted == known:
            return
        await asyncio.to_thread(_write, self._file, wanted)
        self._entries = wanted
        for token_hash in known.keys() - wanted.keys():
            await self._workers.remove_link(token_hash)
        for token_hash, entry in wanted.items():
            if known.get(token_hash) != entry:
                await self._workers.put_link(token_hash, entry)


def _write(file: Path, entries: Mapping[str, str]) -> None:
    atomic_files.replace(file, "".join(f"{digest} {entry}\n" for digest, entry in entries.items()).encode(), mode=0o644)
