"""The previews that are held to the contract."""

from __future__ import annotations

import pytest

from builderd.adapters.fakes.previews import FakePreviews
from builderd.ports.previews import Previews


@pytest.fixture
async def previews() -> Previews:
    fake = FakePreviews()
    await fake.start()
    return fake
