"""The real engine, on one data directory for all tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from tests.engines import prepared, settings_until_down

from builderd.engine.oci.engine.engine import OciEngine
from builderd.engine.port import EngineOptions


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineOptions]:
    with settings_until_down(tmp_path_factory.mktemp("engine")) as found:
        yield found


@pytest.fixture
async def engine(settings: EngineOptions) -> AsyncIterator[OciEngine]:
    async with prepared(settings) as engine:
        yield engine
