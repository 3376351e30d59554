"""The files of builders, and uploads: code too large for JSON."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel

from builderd.client.errors import ApiError, NoAnswer
from builderd.wire.v1.live_files import FileAnswer, FileEntry, FilePage
from builderd.wire.v1.uploads import UploadAnswer, UploadPlaceAnswer

V = TypeVar("V", bound=BaseModel)

API = "/api/v1"
PIECE_BYTES = 1 << 20
#: Until what broke off is sent again, in seconds; and how many times it is sent in all.
RETRY_SECONDS, ATTEMPTS = 1.0, 5
#: A piece has so long to go out; how long it takes to be written to the disk has no limit here.
SENDING = httpx.Timeout(10, read=None, write=60)


class Caller(Protocol):
    """How the client calls."""

    def call(self, answer: type[V], method: str, path: str, **options: Any) -> V: ...
    def request(self, method: str, path: str, **options: Any) -> httpx.Response: ...
    def receive(self, path: str, out: BinaryIO, **options: Any) -> int: ...


class Files:
    """``Client.files``. Paths are relative to ``/app``; whether the builder runs does not matter."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def list_page(self, uuid: str, path: str = "", *, page: int = 1, per_page: int = 100) -> FilePage:
        """Entries of a folder, by their names."""
        query = {"path": path, "page": page, "per_page": per_page}
        return self._caller.call(FilePage, "GET", f"{API}/builders/{uuid}/files", params=query)

    def read(self, uuid: str, path: str) -> bytes:
        """A file, all of it in memory."""
        return self._caller.request("GET", _path(uuid, path), timeout=SENDING).content

    def download(self, uuid: str, path: str, out: BinaryIO, *, start: int = 0) -> int:
        """Write a file to ``out``, from its byte ``start`` on, piece by piece; how many bytes came."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        return self._caller.receive(_path(uuid, path), out, headers=headers)

    def write(self, uuid: str, path: str, content: bytes | BinaryIO, *, executable: bool | None = None) -> FileEntry:
        """Put a file there, over what has its name, with the folders that are missing.

        ``executable`` None: as the file that is replaced. A file that is given is sent from where it stands.
        """
        params = {} if executable is None else {"executable": executable}
        sent = content if isinstance(content, bytes) else _pieces(content)
        options = {"content": sent, "params": params, "timeout": SENDING}
        return self._caller.call(FileAnswer, "PUT", _path(uuid, path), **options).data

    def delete(self, uuid: str, path: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty folder; with ``recursive`` a folder with all that is in it."""
        self._caller.request("DELETE", _path(uuid, path), params={"recursive": recursive}, timeout=SENDING)

    def archive(self, uuid: str, out: BinaryIO) -> int:
        """Write all files as one ``tar.zst`` to ``out``; how many bytes came."""
        return self._caller.receive(f"{API}/builders/{uuid}/archive", out)

    def upload(self, archive: BinaryIO) -> str:
        """Send a zip, tar, tar.gz or tar.zst; the id for ``NewBuilder(source={"upload_id": …})``.

        A connection that breaks off is made again, and goes on where it was.
        """
        size, digest = _measure(archive)
        body = {"size": size, "sha256": digest}
        place = self._caller.call(UploadPlaceAnswer, "POST", f"{API}/uploads", json=body).data
        path = f"{API}/uploads/{place.upload_id}?{urlsplit(place.upload_url).query}"
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if attempt > 1:
                    time.sleep(RETRY_SECONDS)
                self._send(path, archive, size)
            except (NoAnswer, ApiError) as error:
                # The service may not have noticed yet that the request before has ended.
                passes = isinstance(error, NoAnswer) or error.code == "conflict"
                if not passes or attempt == ATTEMPTS:
                    raise
            else:
                break
        return place.upload_id

    def _send(self, path: str, archive: BinaryIO, size: int) -> None:
        state = self._caller.call(UploadAnswer, "GET", path).data
        if state.complete:
            return
        # The last byte is sent again where all have arrived and nobody was told.
        start = min(state.received, size - 1)
        archive.seek(start)
        headers = {"Content-Length": str(size - start), "Content-Range": f"bytes {start}-{size - 1}/{size}"}
        self._caller.call(UploadAnswer, "PUT", path, content=_pieces(archive), headers=headers, timeout=SENDING)

    def delete_upload(self, upload: str) -> None:
        """Make room: what was deployed from it stays."""
        self._caller.request("DELETE", f"{API}/uploads/{upload}")


def _path(uuid: str, path: str) -> str:
    return f"{API}/builders/{uuid}/files/{quote(path)}"


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _measure(file: BinaryIO) -> tuple[int, str]:
    """Its bytes from the beginning, and their sha256."""
    file.seek(0)
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    return file.seek(0, os.SEEK_END), digest.hexdigest()
