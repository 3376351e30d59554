"""The real engine, on one data directory for all tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.engines import prepared, settings_in

from builderd.adapters.engines.oci.engine.engine import OciEngine
from builderd.ports.engine import EngineOptions


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOptions]:
    settings = settings_in(tmp_path_factory.mktemp("engine"))
    yield settings
    asyncio.run(OciEngine(settings).down())


@pytest.fixture
async def engine(settings: EngineOptions) -> AsyncIterator[OciEngine]:
    async with prepared(settings) as engine:
        yield engine
