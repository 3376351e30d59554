"""The stores that are held to the contract: SQLite in a file and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.store.samples import TENANT
from tests.stores import open_store

from builderd.ports.store import Store


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    return f"sqlite:///{tmp_path}/builderd.db" if request.param == "file" else "sqlite://"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """With one tenant in it."""
    async with open_store(url) as opened:
        await opened.write(lambda uow: uow.tenants.add(TENANT))
        yield opened
