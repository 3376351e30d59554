"""The engine on a real cluster of one member, which all tests of this folder share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.incus import IncusCluster, prepared_incus, running_cluster

from builderd.engine.incus.engine import IncusEngine


@pytest.fixture(scope="session")
def cluster() -> Iterator[IncusCluster]:
    with running_cluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("incus")


@pytest.fixture
async def engine(cluster: IncusCluster, data_dir: Path) -> AsyncIterator[IncusEngine]:
    async with prepared_incus(cluster, data_dir) as engine:
        yield engine
