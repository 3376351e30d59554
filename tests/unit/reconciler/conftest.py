"""The application on fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.application import World, fake_world, hurry


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    hurry(monkeypatch.setattr)
    async with fake_world() as made:
        yield made
