from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from tests.service import Service, running_service


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running_service() as running:
        yield running


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    """Return a client with a token that may write."""
    return service.client(service.write)
