"""Clusters of Incus that the tests of one process share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.incus import IncusCluster, running_cluster


@pytest.fixture(scope="session")
def incus_cluster() -> Iterator[IncusCluster]:
    """A cluster of one member."""
    with running_cluster(1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def incus3_cluster() -> Iterator[IncusCluster]:
    """A cluster of three members."""
    with running_cluster(3) as cluster:
        yield cluster
