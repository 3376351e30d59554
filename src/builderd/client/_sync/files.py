"""Generated from ``_async`` by ``script/generate_client.py``: change that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote

from builderd.client._sync.pages import Pages, reader
from builderd.client._sync.transport import Transport
from builderd.client.errors import NotFound, ValidationFailed
from builderd.client.folders import read_folder
from builderd.client.models import FileEntry

PIECE_BYTES = 1 << 20


class Files:
    """Files of a builder (``builder.files``), running or not. Paths are relative to ``/app``."""

    def __init__(self, transport: Transport, uuid: str) -> None:
        self._transport = transport
        self._uuid = uuid

    def list(self, path: str = "") -> Pages[FileEntry]:
        """List a folder's entries, by name."""
        return Pages(self._transport, f"/builders/{self._uuid}/files", reader(FileEntry), {"path": path})

    def read(self, path: str) -> bytes:
        """Return a file's content."""
        uuid, name = self._uuid, quote(path)
        return (self._transport.request("GET", f"/builders/{uuid}/files/{name}", waits=True)).content

    def write(self, path: str, content: str | bytes | IO[bytes], *, executable: bool | None = None) -> FileEntry:
        """Write a file with the folders that are missing. ``executable`` None: as the file that it replaces."""
        uuid, name = self._uuid, quote(path)
        body = content.encode() if isinstance(content, str) else content
        return self._transport.read(
            FileEntry,
            "PUT",
            f"/builders/{uuid}/files/{name}",
            content=body if isinstance(body, bytes) else _pieces(body),
            params={"executable": executable},
            waits=True,
            repeatable=isinstance(body, bytes),
        )

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty folder; with ``recursive`` a folder with all that is in it."""
        uuid, name = self._uuid, quote(path)
        params = {"recursive": recursive}
        self._transport.request("DELETE", f"/builders/{uuid}/files/{name}", params=params, waits=True)

    def archive(self, out: IO[bytes]) -> int:
        """Write all files as one ``tar.zst`` to ``out``; return the number of bytes."""
        return self._receive(f"/builders/{self._uuid}/archive", out)

    def upload(self, local: str | Path, path: str) -> int:
        """Send a file, or a folder with all that a deployment would send of it; return the number of files."""
        source = Path(local)
        if not source.is_dir():
            with source.open("rb") as opened:
                self.write(path, opened, executable=bool(source.stat().st_mode & 0o100))
            return 1
        folder = read_folder(source)
        base = path.strip("/")
        for file in folder.files:
            with (source / file.path).open("rb") as opened:
                self.write(f"{base}/{file.path}".lstrip("/"), opened, executable=file.executable)
        return len(folder.files)

    def download(self, path: str, local: str | Path) -> int:
        """Fetch a file, or a folder with all that is in it; return the number of files. Links are left out."""
        target = Path(local)
        try:
            entries = self.list(path).all()
        except (NotFound, ValidationFailed):
            entries = None  # no folder: a file, or nothing
        if entries is None:
            self._download_file(path, target)
            return 1
        target.mkdir(parents=True, exist_ok=True)
        count = 0
        for entry in entries:
            # A name comes from the app's disk: it must not lead out of the target.
            if entry.type in {"file", "folder"} and entry.name not in {"", ".", ".."} and "/" not in entry.name:
                count += self._download_entry(entry, f"{path}/{entry.name}".lstrip("/"), target / entry.name)
        return count

    def _download_entry(self, entry: FileEntry, path: str, target: Path) -> int:
        if entry.type == "folder":
            return self.download(path, target)
        self._download_file(path, target)
        if int(entry.mode, 8) & 0o100:
            target.chmod(target.stat().st_mode | 0o100)
        return 1

    def _download_file(self, path: str, target: Path) -> None:
        uuid, name = self._uuid, quote(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as out:
            self._receive(f"/builders/{uuid}/files/{name}", out)

    def _receive(self, path: str, out: IO[bytes]) -> int:
        size = 0
        with self._transport.stream("GET", path) as response:
            for piece in response.iter_raw():
                size += out.write(piece)
        return size


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece
