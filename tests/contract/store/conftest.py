"""The stores that are held to the contract: SQLite in a file and in memory, and PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.store.samples import TENANT
from tests.stores import MEMORY, memory_store, open_store, write_database

from builderd.database.unit_of_work import Store

#: All other tests run on it. It is the same adapter as that on a file, which every run holds to the contract.
IN_MEMORY = pytest.param("memory", marks=pytest.mark.slow)
POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)


@pytest.fixture(params=["file", IN_MEMORY, POSTGRES])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database."""
    return _url(request)


@pytest.fixture(params=["file", POSTGRES])
def shared_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database that several stores and processes can open."""
    return _url(request)


def _url(request: pytest.FixtureRequest) -> str:
    match request.param:
        case "file":
            return f"sqlite:///{request.getfixturevalue('tmp_path')}/builderd.db"
        case "memory":
            return MEMORY
        case _:
            return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def store(url: str, tmp_path: Path) -> AsyncIterator[Store]:
    """A store with one tenant."""
    if url.startswith("sqlite:///"):
        await write_database(tmp_path / "builderd.db")
    async with memory_store() if url == MEMORY else open_store(url) as opened:
        await opened.write(lambda uow: uow.tenants.add(TENANT))
        yield opened
