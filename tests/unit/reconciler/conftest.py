"""The application on fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.application import World, fake_world, hurry

from builderd.reconciler import worker


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    hurry(monkeypatch.setattr)
    async with fake_world() as made:
        yield made


@pytest.fixture
def claims_outlast_fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims are renewed in real time; fake time lets one that is held for a tenth of a second expire, ever again."""
    monkeypatch.setattr(worker, "LEASE", timedelta(days=1))
