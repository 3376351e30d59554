"""Rules of the access list, which can only allow, and the networks that instances reach by them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from builderd.adapters.engines.incus.client import IncusOptions
from builderd.adapters.engines.incus.network import access_list, addresses, mac, outside, without_egress
from builderd.domain.addresses import NOT_FOR_SANDBOXES

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


def test_allowed_and_denied_networks_of_the_operator_hold() -> None:
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
