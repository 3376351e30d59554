"""Contract of the uploads port."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from builderd.code.port import Uploads
from builderd.core.errors import Conflict, TooLarge
from builderd.core.ids import UploadId, new_id

ONE = UploadId(new_id())
LIMIT = 1000


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def interrupted(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    raise ConnectionError


async def content(uploads: Uploads) -> bytes:
    with await uploads.open(ONE) as file:
        return file.read()


async def test_an_upload_in_parts_is_stored_as_one(uploads: Uploads) -> None:
    assert await uploads.size(ONE) == 0
    assert await uploads.write(ONE, 0, chunks(b"ab", b"cd"), LIMIT) == 4
    assert await uploads.write(ONE, 4, chunks(b"ef"), LIMIT) == 6
    assert await content(uploads) == b"abcdef"
    assert await uploads.size(ONE) == 6
    assert await uploads.sha256(ONE) == hashlib.sha256(b"abcdef").hexdigest()
    assert list(await uploads.ids()) == [ONE]


async def test_an_interrupted_upload_is_kept_and_resumed(uploads: Uploads) -> None:
    with pytest.raises(ConnectionError):
        await uploads.write(ONE, 0, interrupted(b"abc"), LIMIT)
    assert await uploads.size(ONE) == 3
    assert await uploads.write(ONE, 2, chunks(b"CD"), LIMIT) == 4
    assert await content(uploads) == b"abCD"


async def test_a_gap_is_refused(uploads: Uploads) -> None:
    await uploads.write(ONE, 0, chunks(b"abc"), LIMIT)
    with pytest.raises(Conflict) as raised:
        await uploads.write(ONE, 4, chunks(b"e"), LIMIT)
    assert raised.value.data == {"received": 3}
    assert await content(uploads) == b"abc"


async def test_an_upload_over_the_limit_is_refused(uploads: Uploads) -> None:
    with pytest.raises(TooLarge, match="1000"):
        await uploads.write(ONE, 0, chunks(b"x" * 600, b"x" * 600), LIMIT)
    assert await uploads.size(ONE) <= LIMIT


async def test_a_second_writer_is_refused(uploads: Uploads) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        await go_on.wait()
        yield b"abc"

    first = asyncio.create_task(uploads.write(ONE, 0, slow(), LIMIT))
    await begun.wait()
    with pytest.raises(Conflict):
        await uploads.write(ONE, 0, chunks(b"x"), LIMIT)
    with pytest.raises(Conflict):
        await uploads.delete(ONE)
    go_on.set()
    assert await first == 3
    assert await content(uploads) == b"abc"


async def test_a_deleted_upload_is_gone(uploads: Uploads) -> None:
    await uploads.write(ONE, 0, chunks(b"abc"), LIMIT)
    await uploads.delete(ONE)
    await uploads.delete(ONE)
    assert list(await uploads.ids()) == []
    with pytest.raises(KeyError):
        await uploads.open(ONE)
    with pytest.raises(KeyError):
        await uploads.sha256(ONE)
