"""The calls of the contract are tested on both databases, on PostgreSQL by script/soak.

Every run holds the store on PostgreSQL to its contract, and a live service on it (tests/acceptance/test_postgresql.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.service import Service, running_service
from tests.stores import MEMORY


@pytest.fixture(params=["memory", pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow])])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    url = MEMORY if request.param == "memory" else request.getfixturevalue("postgres_url")
    async with running_service(url) as running:
        yield running
