"""The calls of the contract are tested on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.service import Service, running_service
from tests.stores import MEMORY


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.postgres)])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    url = MEMORY if request.param == "memory" else request.getfixturevalue("postgres_url")
    async with running_service(url) as running:
        yield running
