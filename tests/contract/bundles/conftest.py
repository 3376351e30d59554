"""The bundle stores that keep the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.fakes.bundles import FakeBundles
from tests.stores import memory_store

from builderd.code.bundles.local import LocalBundles
from builderd.code.bundles.shared import SharedBundles
from builderd.code.port import Bundles


@pytest.fixture(params=["fake", "local", "shared"])
async def bundles(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bundles]:
    if request.param == "fake":
        yield FakeBundles()
    elif request.param == "local":
        yield LocalBundles(tmp_path / "bundles")
    else:
        async with memory_store() as store:
            yield SharedBundles(store, LocalBundles(tmp_path / "bundles"))
