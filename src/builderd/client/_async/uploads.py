"""Uploads: code too large for JSON, in parts that can be resumed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import IO
from urllib.parse import urlsplit

from builderd.client._async.streams import AsyncCalls
from builderd.client.errors import ApiError, BadRequest, BuilderdError, Conflict, NoAnswer, NotFound, ValidationFailed
from builderd.client.folders import Folder
from builderd.client.models import UploadPlace, UploadState
from builderd.client.retries import async_sleep, in_thread, repeats_error

PIECE_BYTES = 1 << 20
#: Seconds before an interrupted upload is resumed, doubled each time up to the second number; attempts in all: a
#: cluster's next service answers after some 35 s.
RETRY_SECONDS, MOST_SECONDS, ATTEMPTS = 1.0, 8.0, 8

#: Called with the bytes that are sent and their total.
OnProgress = Callable[[int, int], None]
#: Called with the URL of an upload before its first byte is sent.
OnUploadBegin = Callable[[str], None]


class AsyncUploads(AsyncCalls):
    """Uploads (``client.uploads``)."""

    async def create(self, *, size: int | None = None, sha256: str | None = None) -> UploadPlace:
        """Announce an upload. Its URL needs no token, since it contains a secret."""
        return await self._read(UploadPlace, "POST", "uploads", json={"size": size, "sha256": sha256})

    async def state(self, upload_url: str) -> UploadState:
        """Return how many bytes have arrived."""
        upload, query = _parts(upload_url)
        return await self._read(UploadState, "GET", "uploads", upload, params=query)

    async def delete(self, upload_id: str) -> None:
        """Delete an upload; versions deployed from it stay."""
        await self._send("DELETE", "uploads", upload_id)

    async def send(self, archive: IO[bytes], on_progress: OnProgress | None = None) -> str:
        """Upload a zip, tar, tar.gz or tar.zst; return its id for ``source``. Goes on where it was interrupted."""
        return await self._send_new(archive, on_progress, None)

    async def send_folder(
        self,
        folder: Folder,
        on_progress: OnProgress | None = None,
        *,
        upload_url: str | None = None,
        on_begin: OnUploadBegin | None = None,
    ) -> str:
        """Pack a folder into a temporary file and upload it; return the upload's id.

        ``on_begin`` gets the upload's URL before the first byte is sent. Kept, and given as ``upload_url`` to a later
        call with the same code, it goes on with this upload, also after the process was killed. An upload that has
        expired, or that was of other code, is made anew.
        """
        with tempfile.TemporaryFile() as archive:
            await in_thread(folder.pack, archive)
            if upload_url is not None:
                with suppress(BadRequest, NotFound, ValidationFailed):
                    return await self._send_rest(upload_url, archive, on_progress)
            return await self._send_new(archive, on_progress, on_begin)

    async def _send_new(
        self, archive: IO[bytes], on_progress: OnProgress | None, on_begin: OnUploadBegin | None
    ) -> str:
        size, digest = await in_thread(_measure, archive)
        place = await self.create(size=size, sha256=digest)
        if on_begin is not None:
            on_begin(place.upload_url)
        return await self._send_rest(place.upload_url, archive, on_progress)

    async def _send_rest(self, upload_url: str, archive: IO[bytes], on_progress: OnProgress | None) -> str:
        """Send what has not arrived yet; return the upload's id."""
        size = archive.seek(0, os.SEEK_END)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self._send_part(upload_url, archive, size, on_progress)
                break
            except BuilderdError as error:
                # A conflict: the service may not have noticed yet that the request before has ended.
                passes = isinstance(error, NoAnswer | Conflict) or repeats_error(error, self._transport.timeout)
                if attempt == ATTEMPTS or not passes:
                    raise
                after = error.retry_after if isinstance(error, ApiError) else None
                await async_sleep(after or min(RETRY_SECONDS * 2 ** (attempt - 1), MOST_SECONDS))
        return _parts(upload_url)[0]

    async def _send_part(self, upload_url: str, archive: IO[bytes], size: int, on_progress: OnProgress | None) -> None:
        state = await self.state(upload_url)
        if state.complete:
            return
        # All bytes arrived without confirmation: send the last one again to complete the upload.
        start = min(state.received, size - 1)
        archive.seek(start)
        upload, query = _parts(upload_url)
        await self._send(
            "PUT",
            "uploads",
            upload,
            params=query,
            content=pieces(archive, size, on_progress),
            headers={"Content-Length": str(size - start), "Content-Range": f"bytes {start}-{size - 1}/{size}"},
            waits=True,
            repeatable=False,
        )


def _parts(upload_url: str) -> tuple[str, dict[str, str]]:
    """Return an upload's id and signature. The URL's host may be one that only the service's users reach."""
    url = urlsplit(upload_url)
    name, _, value = url.query.partition("=")
    return url.path.rpartition("/")[2], {name: value}


async def pieces(file: IO[bytes], size: int = 0, on_progress: OnProgress | None = None) -> AsyncIterator[bytes]:
    """Yield a file, and report the bytes sent and their total."""
    while piece := file.read(PIECE_BYTES):
        yield piece
        if on_progress:
            on_progress(file.tell(), size)


def _measure(file: IO[bytes]) -> tuple[int, str]:
    """Return the size of a file and its SHA-256 in hex."""
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
    return file.seek(0, os.SEEK_END), digest.hexdigest()
