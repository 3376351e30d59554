"""A standby's ports on a fake proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.bootstrap.fake_cluster import FakeCluster, instance
from tests.unit.bootstrap.fake_forwarder import FakeForwarder
from tests.unit.bootstrap.passing_on.listing import Listing

from builderd.bootstrap.keys import make_keys
from builderd.bootstrap.membership import Membership
from builderd.bootstrap.passing_on import PassingOn
from builderd.settings import Settings


async def no_hosts() -> list[str]:
    return []


@pytest.fixture
def passing(tmp_path: Path) -> PassingOn:
    settings = Settings(data_dir=tmp_path)
    make_keys(settings).load()
    forwarder = cast("Any", FakeForwarder())
    return PassingOn(Membership(settings, instance(settings), FakeCluster()), no_hosts, forwarder)


@pytest.fixture
async def listing(passing: PassingOn, unused_tcp_port: int) -> Listing:
    made = Listing(passing, unused_tcp_port)
    passing._visited_hosts = made.visited_hosts
    made.forwarder.hops = made.hops
    await passing._membership.describe()
    made.read()
    return made
