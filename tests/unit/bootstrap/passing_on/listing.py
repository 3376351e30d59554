"""A standby with a list of routes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import cast

from tests.unit.bootstrap.fake_cluster import FakeCluster
from tests.unit.bootstrap.fake_forwarder import FakeForwarder

from builderd.adapters.previews.haproxy.forwarder import Target
from builderd.bootstrap.passing_on import PassingOn
from builderd.bootstrap.route_lists import Moment, SeenLease
from builderd.domain.cluster_services import ClusterService
from builderd.domain.errors import StoreUnavailable

OWNER = ClusterService("1" * 16, "one.example", "/srv/one", "1.0", "disks", "aa", "/k", "SHA256:x", "/s")
VISITED, CHANGED = "visited.localhost", "changed.localhost"


def lease(term: int = 1, *, is_over: bool = False) -> SeenLease:
    return SeenLease(term, is_over, Moment())


def led(passing: PassingOn) -> Target:
    return cast("FakeForwarder", passing._forwarder).led[-1]


@dataclass
class Listing:
    """A standby that has a list of two public apps, of which the first lies on another member."""

    passing: PassingOn
    port: int
    #: Public hosts by the database; None while it is away.
    public: list[str] | None = field(default_factory=lambda: [VISITED])

    async def visited_hosts(self) -> list[str]:
        if self.public is None:
            raise StoreUnavailable("The database does not answer.")
        return self.public

    def read(self, term: int = 1) -> None:
        routes = [[VISITED, "10.99.0.20", 1, True, False, "10.98.0.12"], [CHANGED, "10.99.0.21", 1, True, False, ""]]
        answer = {"term": term, "version": "a-1", "whole": True, "routes": routes, "closed": []}
        self.passing.list.take(json.dumps(answer).encode(), Moment())

    async def look(self, *, is_over: bool, term: int = 1) -> None:
        self.passing.follow(replace(OWNER, address=f"127.0.0.1:{self.port}"), lease(term, is_over=is_over))
        await self.passing._look()

    @property
    def forwarder(self) -> FakeForwarder:
        return cast("FakeForwarder", self.passing._forwarder)

    @property
    def cluster(self) -> FakeCluster:
        return cast("FakeCluster", self.passing._membership.provider)

    @property
    def hops(self) -> list[dict[str, str]]:
        return self.cluster.hops
