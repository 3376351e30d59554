"""Rules of the access list, which can only allow, and routes of this machine to apps on other members."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from pathlib import Path

import pytest

from builderd.core.addresses import NOT_FOR_SANDBOXES
from builderd.engine.incus import network
from builderd.engine.incus.client import IncusOptions
from builderd.engine.incus.network import Routes, access_list, addresses, mac, outside, without_egress

OPTIONS = IncusOptions()


def reached(address: str, **changes: object) -> bool:
    values: dict[str, object] = {"allow": (), "deny": (), "resolvers": (), "members": ()}
    rules = access_list(OPTIONS, 8082, **{**values, **changes})["egress"]  # type: ignore[arg-type]
    networks = [IPv4Network(part) for rule in rules for part in rule["destination"].split(",")]
    return any(IPv4Address(address) in network for network in networks)


def test_members_are_no_part_of_the_internet_also_with_public_addresses() -> None:
    rules = access_list(OPTIONS, 8082, (), (), (), ["8.8.4.4"])["egress"]
    rules = [rule for rule in rules if rule.get("destination_port") != "8082"]
    reached = [IPv4Network(one) for rule in rules for one in rule["destination"].split(",")]
    assert not any(IPv4Address("8.8.4.4") in network for network in reached)
    assert any(IPv4Address("8.8.4.5") in network for network in reached)


def test_the_internet_and_the_service_are_reached() -> None:
    assert reached("1.1.1.1")
    assert reached("10.99.0.1")


def test_private_networks_and_neighbours_are_not_reached() -> None:
    for address in (
        "10.98.0.11",
        "10.99.3.4",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "127.0.0.1",
        "224.0.0.1",
    ):
        assert not reached(address)


def test_members_are_reached_at_the_port_of_the_service_alone() -> None:
    members = ["10.98.0.11", "10.98.0.12"]
    rules = access_list(OPTIONS, 8082, (), (), (), members)["egress"]
    to_members = [rule for rule in rules if reached_by(rule, "10.98.0.11") or reached_by(rule, "10.98.0.12")]
    (rule,) = to_members
    assert rule["destination"] == "10.99.0.1/32,10.98.0.11/32,10.98.0.12/32"
    assert (rule["protocol"], rule["destination_port"]) == ("tcp", "8082")


def reached_by(rule: dict[str, str], address: str) -> bool:
    return any(IPv4Address(address) in IPv4Network(part) for part in rule["destination"].split(","))


def test_allowed_and_denied_networks_of_the_operator_apply() -> None:
    allow = (IPv4Network("10.5.0.0/16"),)
    assert reached("10.5.1.1", allow=allow)
    assert not reached("10.5.1.1", allow=allow, deny=(IPv4Network("10.5.1.0/24"),))
    assert not reached("1.1.1.1", deny=(IPv4Network("1.1.1.0/24"),))


def test_only_proxies_of_members_and_the_gateway_come_in() -> None:
    (rule,) = access_list(OPTIONS, 8082, (), (), (), ["10.98.0.11", "10.98.0.12"])["ingress"]
    assert rule["source"] == "10.99.0.1/32,10.98.0.11/32,10.98.0.12/32"


def test_instances_without_egress_have_addresses_that_no_rule_allows() -> None:
    sources = {
        IPv4Network(part)
        for rule in access_list(OPTIONS, 8082, (), (), ("9.9.9.9",), [])["egress"]
        for part in rule["source"].split(",")
    }
    assert not any(source.overlaps(without_egress(OPTIONS.subnet)) for source in sources)
    assert addresses(OPTIONS.subnet, egress=False) == without_egress(OPTIONS.subnet)
    assert addresses(OPTIONS.subnet, egress=True).subnet_of(OPTIONS.subnet)


def test_complement_of_networks_is_exact() -> None:
    left = outside(NOT_FOR_SANDBOXES)
    excluded = list(collapse_addresses(NOT_FOR_SANDBOXES))
    assert list(collapse_addresses([*left, *excluded])) == [IPv4Network("0.0.0.0/0")]
    assert not any(one.overlaps(other) for one in left for other in excluded)


def test_mac_follows_the_address() -> None:
    assert mac("10.99.1.2") == "02:bd:0a:63:01:02"


async def address_of(member: str) -> str:
    return {"node1": "10.98.0.11", "node2": "10.98.0.12"}[member]


async def test_next_hop_is_known_for_apps_of_other_members_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "10.99.0.20 via 10.98.0.12 dev eth0\n10.99.0.29 via 10.98.0.13 dev eth0 onlink\n"
    ran: list[str] = []

    async def ip(*words: str, lines: Iterable[str] = ()) -> str:
        ran.append("\n".join(lines) or " ".join(words))
        return shown if words[1] == "show" else ""

    monkeypatch.setattr(network, "_ip", ip)
    made = Routes("node1", address_of)
    await made.sync({"10.99.0.20": "node2", "10.99.0.21": "node1"})
    assert "route del 10.99.0.29/32 proto 152" in ran
    assert made._known == {"10.99.0.20": "10.98.0.12"}
    await made.add("10.99.0.22", "node2")
    await made.remove("10.99.0.20")
    assert made._known == {"10.99.0.22": "10.98.0.12"}


@pytest.fixture
def slow_ip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``ip`` that does not end; the file that it writes its pid into."""
    program, pid = tmp_path / "ip", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ >{pid}.new && mv {pid}.new {pid} && exec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return pid


async def test_cancelled_change_of_routes_goes_on_no_more(slow_ip: Path) -> None:
    """Routes would be added after they were removed."""
    putting = asyncio.create_task(network._ip("route", "show"))
    async with asyncio.timeout(30):
        while not slow_ip.exists():
            await asyncio.sleep(0.01)
    putting.cancel()
    await asyncio.wait({putting})
    assert not Path(f"/proc/{slow_ip.read_text().strip()}").exists()
