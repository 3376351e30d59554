"""The firewall's text, and the network where the kernel cannot do all that is asked of it.

The rest is proved on real ones.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from builderd.core.addresses import DOCUMENTATION, NOT_FOR_SANDBOXES, in_any_network, is_public
from builderd.core.errors import EngineUnavailable
from builderd.engine.oci.network.allocations import Addresses
from builderd.engine.oci.network.conntrack import make_deletion
from builderd.engine.oci.network.network import (
    FIRST_PORT,
    FLOWS,
    SHARES,
    Egress,
    Network,
    Policy,
    PortShares,
    make_resolv_conf,
    make_rules,
    parse_nameservers,
    share_ports,
)


def network(monkeypatch: pytest.MonkeyPatch, refused: str, applied: list[str]) -> Network:
    def apply(rules: str) -> None:
        if refused in rules:
            raise EngineUnavailable("nft refused it")
        applied.append(rules)

    monkeypatch.setattr(Network, "_apply", staticmethod(apply))
    return Network("0123abcd", Addresses(IPv4Network("10.64.8.0/21")), Egress(8080))


def test_a_kernel_that_cannot_count_flows_gets_the_other_rules(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    applied: list[str] = []
    one = network(monkeypatch, "ct count", applied)
    one._open_firewall(one._policy())
    assert "@near drop" in applied[0]
    assert "cannot count" in caplog.text


def test_missing_firewall_rules_fail_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    one = network(monkeypatch, "@near", [])
    with pytest.raises(EngineUnavailable):
        one._open_firewall(one._policy())


TEXT = """\
# made by hand
search example.org
nameserver 127.0.0.53
nameserver 10.1.2.3
nameserver fd00::1
nameserver
nameserver 10.1.2.3
options ndots:2
"""


def test_servers_on_loopback_and_of_ipv6_are_left_out() -> None:
    assert parse_nameservers(TEXT) == ("10.1.2.3",)
    assert parse_nameservers("") == ()


def test_the_search_list_and_the_options_stay() -> None:
    assert make_resolv_conf(("10.1.2.3",), TEXT) == "nameserver 10.1.2.3\nsearch example.org\noptions ndots:2\n"


POLICY = Policy(
    instance="0123abcd",
    bridge="bd-0123ab",
    subnet=IPv4Network("10.64.8.0/21"),
    without_egress=IPv4Network("10.64.12.0/22"),
    gateway="10.64.8.1",
    inside_port=8080,
    resolvers=("10.255.255.53",),
    allow=(IPv4Network("10.1.0.0/16"),),
    deny=(IPv4Network("203.0.113.0/24"), IPv4Network("203.0.113.7/32")),
)


def chain(rules: str, name: str) -> list[str]:
    body = rules.split(f"chain {name} {{")[1].split("}\n")[0:]
    return [line.strip() for line in "}\n".join(body).split("\n  }")[0].splitlines() if line.strip()]


def test_the_table_is_replaced_as_a_whole() -> None:
    assert make_rules(POLICY).startswith("table inet builderd_0123abcd\ndelete table inet builderd_0123abcd\n")


def test_denied_goes_before_resolvers_and_those_before_near_networks() -> None:
    forward = chain(make_rules(POLICY), "forward")
    order = [
        next(i for i, line in enumerate(forward) if word in line)
        for word in ("@denied", "@resolvers", "@allowed", "@near")
    ]
    assert order == sorted(order)
    assert any("10.64.12.0/22 reject" in line for line in forward[: order[0]])


def test_denied_networks_are_those_of_the_domain() -> None:
    listed = re.search(r"set near \{.* elements = \{ (.*?) \}", make_rules(POLICY))
    assert listed
    networks = [IPv4Network(element) for element in listed[1].split(", ")]
    edges = [
        address + by
        for near in NOT_FOR_SANDBOXES
        for address in (near[0], near[-1])
        for by in (-1, 0, 1)
        if 0 <= int(address) + by < 1 << 32
    ]
    for address in edges:
        refused = not is_public(address) and not in_any_network(address, DOCUMENTATION)
        assert any(address in network for network in networks) is refused


def test_nothing_goes_out_by_ipv6() -> None:
    assert chain(make_rules(POLICY), "prerouting")[1] == 'iifname "bd-0123ab" meta nfproto ipv6 drop'


def test_the_host_is_reached_at_the_gateway_only() -> None:
    accepted = [line for line in chain(make_rules(POLICY), "input") if line.endswith(("accept", "admit"))]
    assert accepted == [
        'iifname "bd-0123ab" ct state established,related accept',
        'iifname "bd-0123ab" ip daddr 10.64.8.1 tcp dport 8080 goto admit',
        'iifname "bd-0123ab" ip daddr @resolvers meta l4proto { tcp, udp } th dport 53 goto admit',
    ]


def test_connections_of_a_sandbox_are_counted() -> None:
    rules = make_rules(POLICY)
    begun = [line for name in ("input", "forward") for line in chain(rules, name) if line.startswith("iifname")]
    assert [line for line in begun if line.endswith("accept")] == [
        'iifname "bd-0123ab" ct state established,related accept'
    ] * 2
    assert chain(rules, "admit")[-2:] == [f"add @flows {{ ip saddr ct count over {FLOWS} }} drop", "accept"]


@pytest.mark.root
@pytest.mark.parametrize(
    "policy",
    [POLICY, replace(POLICY, resolvers=(), allow=(), deny=()), replace(POLICY, counts_flows=False)],
    ids=["full", "empty", "uncounted"],
)
def test_nft_takes_the_text(policy: Policy) -> None:
    done = subprocess.run(
        ["nft", "--check", "-f", "-"], input=make_rules(policy), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_shares_are_ports_apart() -> None:
    ports = [port for share in range(SHARES) for port in share_ports(share)]
    assert len(set(ports)) == len(ports)
    assert min(ports) == FIRST_PORT
    assert max(ports) < 1 << 16


def test_a_tenant_has_one_share_for_all_its_sandboxes() -> None:
    shares = PortShares()
    assigned = shares.assign({"10.0.0.2": "a", "10.0.0.3": "b", "10.0.0.4": "a"})
    assert assigned["10.0.0.2"] == assigned["10.0.0.4"] != assigned["10.0.0.3"]
    assert shares.assign({"10.0.0.5": "a"}) == {"10.0.0.5": assigned["10.0.0.2"]}


def test_tenants_share_only_when_all_shares_are_taken() -> None:
    shares = PortShares()
    assigned = shares.assign({f"10.0.0.{number}": str(number) for number in range(SHARES + 1)})
    assert len(set(assigned.values())) == SHARES
    assert len(set(list(assigned.values())[:SHARES])) == SHARES


def test_a_share_is_free_again_after_the_last_sandbox() -> None:
    shares = PortShares()
    first = shares.assign({"10.0.0.2": "a", "10.0.0.3": "a"})["10.0.0.2"]
    assert shares.release("10.0.0.2")
    assert shares.assign({"10.0.0.4": "b"})["10.0.0.4"] != first
    assert shares.release("10.0.0.3")
    assert not shares.release("10.0.0.3")
    assert shares.assign({"10.0.0.5": "c"})["10.0.0.5"] == first


pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="written out as on a little-endian machine")

MINE, PEER = bytes([10, 64, 8, 2]), bytes([203, 0, 113, 10])
#: A tuple: the addresses, and UDP from port 1000 to 53.
FIRST = bytes.fromhex("1400 0180 0800 0100 0a400802 0800 0200 cb00710a 1c00 0280 05000100 11000000 06000200 03e80000 ")
FIRST += bytes.fromhex("06000300 00350000")
ABOUT = bytes.fromhex("02 00 0000")


def told(first: bytes, *more: str) -> bytes:
    return ABOUT + bytes.fromhex("3400 0180") + first + bytes.fromhex("".join(more))


def test_a_flow_is_deleted_by_its_first_packet_and_its_number() -> None:
    status, number, zone = "0800 0300 0000000e", "0800 0c00 deadbeef", "0600 1200 0007 0000"
    assert make_deletion(told(FIRST, status, number, zone), MINE.__eq__) == (
        bytes.fromhex("5800 0000 0201 0500 00000000 00000000")
        + told(FIRST)
        + bytes.fromhex("0800 0c00 deadbeef 0600 1200 0007 0000")
    )
    deletion = make_deletion(told(FIRST, status, number), PEER.__eq__)
    assert deletion is not None
    assert deletion[16:] == told(FIRST, number)


@pytest.mark.parametrize(
    "flow",
    [
        told(FIRST.replace(MINE, PEER)),
        told(FIRST.replace(MINE, PEER), "0800 0800 0a400802"),  # the address elsewhere, as a mark
        ABOUT + bytes.fromhex("0400 0180"),
    ],
)
def test_a_flow_of_others_is_not_deleted(flow: bytes) -> None:
    assert make_deletion(flow, MINE.__eq__) is None
