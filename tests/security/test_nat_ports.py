"""NAT ports towards one destination, which all sandboxes share: a tenant gets only its share.

In two network namespaces: the host's, with the firewall's table, and the sandboxes', with many addresses.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network

import pytest

from builderd.engine.oci.network.network import FIRST_PORT, SHARE_PORTS, Policy, add_to_shares, make_rules, share_ports

pytestmark = pytest.mark.root

BRIDGE, GATEWAY, DESTINATION = "bd-0123ab", "10.64.8.1", "198.51.100.10"
MINE = [f"10.64.8.{number}" for number in range(2, 5)]
NEIGHBOUR, BUILD = "10.64.8.200", "10.64.8.201"
POLICY = Policy(
    instance="0123abcd",
    bridge=BRIDGE,
    subnet=IPv4Network("10.64.8.0/21"),
    without_egress=IPv4Network("10.64.12.0/22"),
    gateway=GATEWAY,
    inside_port=8080,
)
#: Each packet begins a flow: from each address by ports of its own to one port of one destination.
FLOOD = """
import socket, sys
count, target = int(sys.argv[1]), sys.argv[2]
for address in sys.argv[3:]:
    for port in range(20000, 20000 + count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind((address, port))
            try:
                one.sendto(b"x", (target, 443))
            except OSError:
                pass
"""


@dataclass(frozen=True)
class World:
    host: int
    sandboxes: int

    def share(self, shares: dict[str, int]) -> None:
        text = make_rules(POLICY) + add_to_shares(POLICY.instance, shares)
        self.run(self.host, "nft", "-f", "-", text=text)

    def flood(self, count: int, *addresses: str) -> None:
        self.run(self.sandboxes, sys.executable, "-ISc", FLOOD, str(count), DESTINATION, *addresses)

    def tracked(self) -> Counter[str]:
        """The flows to the destination, by the address that began them."""
        flows = self.run(self.host, "cat", "/proc/net/nf_conntrack").splitlines()
        return Counter(next(word[4:] for word in flow.split() if word.startswith("src=")) for flow in flows)

    def ports(self, ip: str) -> set[int]:
        """The source ports by which flows of the address leave the host."""
        flows = self.run(self.host, "cat", "/proc/net/nf_conntrack").splitlines()
        return {int(flow.rpartition("dport=")[2].split()[0]) for flow in flows if f"src={ip} " in flow}

    @staticmethod
    def run(network: int, *words: str, text: str = "") -> str:
        entered = ["nsenter", f"--net=/proc/{network}/ns/net", *words]
        return subprocess.run(entered, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        host, sandboxes = (stack.enter_context(_network()) for _ in range(2))
        made = World(host.pid, sandboxes.pid)
        made.run(
            host.pid,
            "ip",
            "-batch",
            "-",
            text=(
                f"link add {BRIDGE} type veth peer name eth0 netns {sandboxes.pid}\n"
                f"addr add {GATEWAY}/21 dev {BRIDGE}\nlink set {BRIDGE} up\n"
                "link add out type veth peer name sink\nlink set sink up\n"
                "addr add 198.51.100.1/24 dev out\nlink set out up\n"
                f"neigh add {DESTINATION} lladdr 02:00:00:00:00:01 dev out\n"
            ),
        )
        made.run(host.pid, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        addresses = "".join(f"addr add {ip}/21 dev eth0\n" for ip in (*MINE, NEIGHBOUR, BUILD))
        inside = f"link set eth0 up\n{addresses}route add default via {GATEWAY}\n"
        made.run(sandboxes.pid, "ip", "-batch", "-", text=inside)
        yield made
        for process in (host, sandboxes):
            process.communicate(b"")


def _network() -> subprocess.Popen[bytes]:
    words = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


def test_sandboxes_of_a_tenant_share_its_nat_ports(world: World) -> None:
    """Twenty of them took nearly all 64,512 ports towards one destination, which other tenants draw from as well."""
    world.share({**dict.fromkeys(MINE, 0), NEIGHBOUR: 1})
    world.flood(1500, *MINE)
    world.flood(100, NEIGHBOUR, BUILD)
    tracked = world.tracked()
    assert SHARE_PORTS * 0.9 < sum(tracked[ip] for ip in MINE) <= SHARE_PORTS
    assert tracked[NEIGHBOUR] == tracked[BUILD] == 100
    assert world.ports(MINE[0]) <= set(share_ports(0))
    assert world.ports(NEIGHBOUR) <= set(share_ports(1))
    assert max(world.ports(BUILD)) < FIRST_PORT
