"""The local upload store, beyond the contract."""

from __future__ import annotations

import fcntl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from builderd.code.upload_store import LocalUploads
from builderd.core.ids import UploadId, new_id

ONE = UploadId(new_id())


async def content() -> AsyncIterator[bytes]:
    yield b"abc"


async def test_an_upload_deleted_between_open_and_lock_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, lock = LocalUploads(tmp_path), fcntl.flock
    calls: list[int] = []

    def lock_late(file: Any, operation: int) -> None:
        if not calls:
            (tmp_path / ONE).unlink()
        calls.append(operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    assert await uploads.write(ONE, 0, content(), 10) == 3
    assert (len(calls), (tmp_path / ONE).read_bytes()) == (2, b"abc")
