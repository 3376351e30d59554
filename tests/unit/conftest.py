"""The application on fakes, and its HTTP API.

The calls of the contract are tested on both databases, on PostgreSQL by script/soak. Every run holds the store on
PostgreSQL to its contract, and a live service on it (tests/acceptance/test_postgresql.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from tests.application import World, fake_world, hurry
from tests.service import Service, running_service
from tests.stores import MEMORY


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    hurry(monkeypatch.setattr)
    async with fake_world() as made:
        yield made


@pytest.fixture(params=["memory", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    url = MEMORY if request.param == "memory" else request.getfixturevalue("postgres_url")
    async with running_service(url) as running:
        yield running


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    """Return a client with a token that may write."""
    return service.client(service.write)
