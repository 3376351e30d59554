"""The upload stores under the contract tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fakes.uploads import FakeUploads
from tests.stores import memory_store

from builderd.code.port import Uploads
from builderd.code.upload_store import LocalUploads, SharedUploads


@pytest.fixture(params=["fake", "local", "shared"])
async def uploads(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Uploads]:
    if request.param == "fake":
        yield FakeUploads()
    elif request.param == "local":
        yield LocalUploads(tmp_path / "uploads")
    else:
        async with memory_store() as store:
            yield SharedUploads(store, tmp_path / "uploads")
