"""The access list while a member is evacuated, when Incus changes none."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from builderd.adapters.engines.incus.client import IncusConflict, IncusError, IncusOptions
from builderd.adapters.engines.incus.cluster import EVACUATE, Cluster
from builderd.adapters.engines.incus.network import network_config
from builderd.domain.errors import EngineUnavailable
from builderd.ports.engine import EngineOptions

OPTIONS = IncusOptions()
DENY = [IPv4Network("203.0.113.0/24")]


class Lists:
    """An Incus of two members that keeps one access list, in its own order and with empty fields."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.evacuated: Sequence[str] = ()
        self.puts = 0

    async def get(self, path: str, **query: str) -> Any:
        if path == "/cluster/members":
            return [
                {
                    "server_name": name,
                    "url": f"https://10.0.0.{name[-1]}:8443",
                    "status": "Evacuated" if name in self.evacuated else "Online",
                    "config": {EVACUATE: "1"} if name in self.evacuated else {},
                }
                for name in ("node1", "node2")
            ]
        if path.startswith("/networks"):
            return {"config": network_config(OPTIONS)}
        return deepcopy(self.stored)

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        if method == "POST":
            if self.stored is not None:
                raise IncusConflict(409, "already exists")
            self.stored = {"name": body["name"], "egress": [], "ingress": []}
            return
        self.puts += 1
        if self.evacuated:
            raise IncusError(500, "failed to notify peer: flush chain inet incus acl.builderd")
        rules = {kind: [{**rule, "icmp_type": ""} for rule in reversed(body[kind])] for kind in ("egress", "ingress")}
        self.stored = {"name": "builderd", **rules}


def cluster_on(lists: Lists, own: str = "node1") -> Cluster:
    cluster = Cluster(lists, OPTIONS)  # type: ignore[arg-type]
    cluster.clustered, cluster.own = True, own
    return cluster


async def ensure(cluster: Cluster, deny: Sequence[IPv4Network] = ()) -> None:
    await cluster.ensure_network(EngineOptions(Path("/none"), inside_port=8082, deny=tuple(deny)), ["9.9.9.9"])


async def test_list_that_is_as_wanted_is_not_changed() -> None:
    lists = Lists()
    await ensure(cluster_on(lists))
    await ensure(cluster_on(lists))
    assert lists.puts == 1
    await ensure(cluster_on(lists), DENY)
    assert lists.puts == 2


async def test_service_starts_and_is_taken_over_while_a_member_is_evacuated() -> None:
    lists = Lists()
    await ensure(cluster_on(lists))
    lists.evacuated = ["node1"]
    for own in ("node1", "node2"):
        await ensure(cluster_on(lists, own))
    assert lists.puts == 1


async def test_rule_of_the_operator_that_cannot_be_set_is_an_error_in_words() -> None:
    lists = Lists()
    await ensure(cluster_on(lists))
    lists.evacuated = ["node2"]
    with pytest.raises(EngineUnavailable, match=r"node2.*cluster restore"):
        await ensure(cluster_on(lists), DENY)
    lists.evacuated = []
    await ensure(cluster_on(lists), DENY)
