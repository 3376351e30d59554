"""Calls for builders' files, and for uploads: code too large for JSON."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import BaseModel

from builderd.client.legacy.errors import ApiError, NoAnswer
from builderd.schemas.v1.live_files import FileAnswer, FileEntry, FilePage
from builderd.schemas.v1.uploads import UploadAnswer, UploadPlaceAnswer

V = TypeVar("V", bound=BaseModel)

API = "/api/v1"
PIECE_BYTES = 1 << 20
#: Seconds before an interrupted upload is resumed, and attempts in all.
RETRY_SECONDS, ATTEMPTS = 1.0, 5
#: Seconds to send one piece; no limit for the service to write it to the disk.
SENDING = httpx2.Timeout(10, read=None, write=60)


class Caller(Protocol):
    """Calls of the client that this class uses."""

    def call(self, answer: type[V], method: str, path: str, **options: Any) -> V: ...
    def request(self, method: str, path: str, **options: Any) -> httpx2.Response: ...
    def receive(self, path: str, out: BinaryIO, **options: Any) -> int: ...


class Files:
    """File calls (``Client.files``). Paths are relative to ``/app``; whether the builder runs does not matter."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def list_page(self, uuid: str, path: str = "", *, page: int = 1, per_page: int = 100) -> FilePage:
        """Return a page of a folder's entries, by name."""
        query = {"path": path, "page": page, "per_page": per_page}
        return self._caller.call(FilePage, "GET", f"{API}/builders/{uuid}/files", params=query)

    def read(self, uuid: str, path: str) -> bytes:
        """A file, all of it in memory."""
        return self._caller.request("GET", _path(uuid, path), timeout=SENDING).content

    def download(self, uuid: str, path: str, out: BinaryIO, *, start: int = 0) -> int:
        """Write a file from byte ``start`` on to ``out``; return the number of bytes."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        return self._caller.receive(_path(uuid, path), out, headers=headers)

    def write(self, uuid: str, path: str, content: bytes | BinaryIO, *, executable: bool | None = None) -> FileEntry:
        """Write a file, replacing one of the same name; creates missing folders.

        ``executable`` None: as the replaced file. A file object is sent from its present position.
        """
        params = {} if executable is None else {"executable": executable}
        sent = content if isinstance(content, bytes) else _pieces(content)
        options = {"content": sent, "params": params, "timeout": SENDING}
        return self._caller.call(FileAnswer, "PUT", _path(uuid, path), **options).data

    def delete(self, uuid: str, path: str, *, recursive: bool = False) -> None:
        """Delete a file or an empty folder; with ``recursive`` a folder with all that is in it."""
        self._caller.request("DELETE", _path(uuid, path), params={"recursive": recursive}, timeout=SENDING)

    def archive(self, uuid: str, out: BinaryIO) -> int:
        """Write all files as one ``tar.zst`` to ``out``; return the number of bytes."""
        return self._caller.receive(f"{API}/builders/{uuid}/archive", out)

    def upload(self, archive: BinaryIO) -> str:
        """Upload a zip, tar, tar.gz or tar.zst; return the id for ``NewBuilder(source={"upload_id": …})``.

        An interrupted upload is resumed.
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
        # All bytes arrived without confirmation: send the last one again to complete the upload.
        start = min(state.received, size - 1)
        archive.seek(start)
        headers = {"Content-Length": str(size - start), "Content-Range": f"bytes {start}-{size - 1}/{size}"}
        self._caller.call(UploadAnswer, "PUT", path, content=_pieces(archive), headers=headers, timeout=SENDING)

    def delete_upload(self, upload: str) -> None:
        """Delete an upload; versions deployed from it stay."""
        self._caller.request("DELETE", f"{API}/uploads/{upload}")


def _path(uuid: str, path: str) -> str:
    return f"{API}/builders/{uuid}/files/{quote(path)}"


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _measure(file: BinaryIO) -> tuple[int, str]:
    """Return the size of a file and its SHA-256 in hex."""
    file.seek(0)
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    return file.seek(0, os.SEEK_END), digest.hexdigest()
