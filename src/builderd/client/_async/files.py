"""Files on a builder's disk."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from builderd.client._async.streams import AsyncCalls, AsyncPages
from builderd.client._async.uploads import pieces
from builderd.client.errors import NotFound, ValidationFailed
from builderd.client.folders import read_folder
from builderd.client.models import FileEntry
from builderd.client.options import RequestPath


class AsyncFiles(AsyncCalls):
    """Files of a builder (``builder.files``), running or not. Paths are relative to ``/app``."""

    def list(self, path: str = "") -> AsyncPages[FileEntry]:
        """List a folder's entries, by name."""
        return self._list(FileEntry, "files", path=path)

    async def read(self, path: str) -> bytes:
        """Return a file's content."""
        return (await self._send("GET", *_segments(path), waits=True)).content

    async def write(self, path: str, content: str | bytes | IO[bytes], *, executable: bool | None = None) -> FileEntry:
        """Write a file with the folders that are missing. ``executable`` None: as the file that it replaces."""
        body = content.encode() if isinstance(content, str) else content
        return await self._read(
            FileEntry,
            "PUT",
            *_segments(path),
            content=body if isinstance(body, bytes) else pieces(body),
            params={"executable": executable},
            waits=True,
            repeatable=isinstance(body, bytes),
        )

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty folder; with ``recursive`` a folder with all that is in it."""
        await self._send("DELETE", *_segments(path), params={"recursive": recursive}, waits=True)

    async def archive(self, out: IO[bytes]) -> int:
        """Write all files as one ``tar.zst`` to ``out``; return the number of bytes."""
        return await self._receive(self._path("archive"), out)

    async def upload(self, local: str | Path, path: str) -> int:
        """Send a file, or a folder with all that a deployment would send of it; return the number of files."""
        source = Path(local)
        if not source.is_dir():
            with source.open("rb") as opened:
                await self.write(path, opened, executable=bool(source.stat().st_mode & 0o100))
            return 1
        folder = read_folder(source)
        base = path.strip("/")
        for file in folder.files:
            with (source / file.path).open("rb") as opened:
                await self.write(f"{base}/{file.path}".lstrip("/"), opened, executable=file.executable)
        return len(folder.files)

    async def download(self, path: str, local: str | Path) -> int:
        """Fetch a file, or a folder with all that is in it; return the number of files. Links are left out."""
        target = Path(local)
        try:
            entries = await self.list(path).all()
        except (NotFound, ValidationFailed):
            entries = None  # no folder: a file, or nothing
        if entries is None:
            await self._download_file(path, target)
            return 1
        target.mkdir(parents=True, exist_ok=True)
        count = 0
        for entry in entries:
            # A name comes from the app's disk: it must not lead out of the target.
            if entry.type not in {"file", "folder"} or entry.name in {"", ".", ".."} or "/" in entry.name:
                continue
            below, place = f"{path.strip('/')}/{entry.name}".lstrip("/"), target / entry.name
            if entry.type == "folder":
                count += await self.download(below, place)
                continue
            await self._download_file(below, place)
            if int(entry.mode, 8) & 0o100:
                place.chmod(place.stat().st_mode | 0o100)
            count += 1
        return count

    async def _download_file(self, path: str, target: Path) -> None:
        source = self._path(*_segments(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            await self._receive(source, out)

    async def _receive(self, path: RequestPath, out: IO[bytes]) -> int:
        size = 0
        async with self._transport.stream("GET", path) as response:
            async for piece in response.aiter_raw():
                size += out.write(piece)
        return size


def _segments(path: str) -> list[str]:
    return ["files", *path.split("/")]
